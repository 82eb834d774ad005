from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nnssl.core.errors import UserError
from nnssl.data.report import (
    read_settings,
    refuse_other_settings,
    settings_in_folder,
    volume_settings,
    write_settings,
)
from tests.pretrainings import tiny_plans

ONE, OTHER = {"spacing": [1, 1, 1], "preprocessor_name": "P"}, {"spacing": [2, 1, 1], "preprocessor_name": "P"}


def test_refuse_other_settings__compares_with_what_is_noted(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    refuse_other_settings(folder, ONE, "do it")  # nothing is known
    write_settings(folder, ONE)
    refuse_other_settings(folder, ONE, "do it")
    with pytest.raises(UserError, match=r"spacing changed.*do it"):
        refuse_other_settings(folder, OTHER, "do it")
    assert read_settings(folder) == ONE
    assert not folder.exists()  # the note lies beside the body masks


def test_settings_in_folder__of_plans_that_have_their_volumes_there() -> None:
    made: dict[str, Any] = {
        "data_identifier": "data", "preprocessor_name": "P", "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["CTNormalization"], "use_mask_for_norm": [False],
        "resampling_fn_data": "r", "resampling_fn_data_kwargs": {}, "resampling_fn_seg": "r",
        "resampling_fn_seg_kwargs": {}, "architecture": {},
    }  # fmt: skip
    window = {"mean": 0.0, "std": 1.0, "percentile_00_5": -1.0, "percentile_99_5": 1.0, "median": 0.0}
    plans = {"configurations": {"3d_fullres": made}, "transpose_forward": [0, 1, 2],
             "foreground_intensity_properties_per_channel": {"0": window}}  # fmt: skip
    found = settings_in_folder(plans, "3d_fullres", "data")
    assert found is not None and found["spacing"] == [1.0, 1.0, 1.0] and "median" not in found["ct_window"][0]
    assert settings_in_folder(plans, "3d_fullres", "elsewhere") is None
    assert settings_in_folder(plans, "3d_lowres", "data") is None and settings_in_folder(None, "", "data") is None


def test_volume_settings__plans_that_lack_what_preprocessing_needs() -> None:
    plans = tiny_plans()
    for key in ("resampling_fn_data", "preprocessor_name"):
        del plans["configurations"]["3d_fullres"][key]
    with pytest.raises(UserError, match="nnsslPlans_tiny lacks preprocessor_name, resampling_fn_data"):
        volume_settings(plans, "3d_fullres")
