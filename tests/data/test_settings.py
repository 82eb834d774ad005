from __future__ import annotations

from pathlib import Path

import pytest

from nnssl.data.settings import check_settings, remove_unfit_volumes, volume_settings
from nnssl.errors import UserError
from tests.pretrainings import tiny_plans

ONE, OTHER = {"spacing": [1, 1, 1], "preprocessor_name": "P"}, {"spacing": [2, 1, 1], "preprocessor_name": "P"}


def _volume(folder: Path) -> None:
    folder.mkdir()
    for name in ("a.b2nd", "a_seg.b2nd", "a.pkl"):
        (folder / name).write_text("")


def test_check_settings__notes_and_compares(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    check_settings(folder, ONE)
    check_settings(folder, ONE)
    with pytest.raises(UserError, match=r"spacing changed.*-overwrite_plans_name"):
        check_settings(folder, OTHER)
    assert not folder.exists()  # the note lies beside the body masks


def test_remove_unfit_volumes__only_those_made_with_other_settings(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    _volume(folder)
    assert not remove_unfit_volumes(folder, ONE, before=None)  # nothing is known
    assert not remove_unfit_volumes(folder, ONE, before=ONE)
    check_settings(folder, ONE)
    assert not remove_unfit_volumes(folder, ONE, before=OTHER)  # the note counts
    assert folder.exists()
    assert remove_unfit_volumes(folder, OTHER, before=None)
    assert not list(tmp_path.iterdir())


def test_remove_unfit_volumes__replaced_plans_speak_for_nnunets_volumes(tmp_path: Path) -> None:
    _volume(tmp_path / "data")
    assert remove_unfit_volumes(tmp_path / "data", OTHER, before=ONE)
    assert not (tmp_path / "data").exists()


def test_remove_unfit_volumes__nothing_behind_a_link(tmp_path: Path) -> None:
    _volume(tmp_path / "elsewhere")
    (tmp_path / "data").symlink_to(tmp_path / "elsewhere")
    check_settings(tmp_path / "data", ONE)
    with pytest.raises(UserError, match="is a link"):
        remove_unfit_volumes(tmp_path / "data", OTHER, before=None)
    assert len(list((tmp_path / "elsewhere").iterdir())) == 3


def test_volume_settings__plans_that_lack_what_preprocessing_needs() -> None:
    plans = tiny_plans()
    for key in ("resampling_fn_data", "preprocessor_name"):
        del plans["configurations"]["3d_fullres"][key]
    with pytest.raises(UserError, match="nnsslPlans_tiny lacks preprocessor_name, resampling_fn_data"):
        volume_settings(plans, "3d_fullres")
