from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nnssl.core.errors import UserError
from nnssl.data.report import (
    Findings,
    orientation_summary,
    read_report,
    read_settings,
    recalled_orientations,
    refuse_left_out,
    refuse_other_settings,
    report_file,
    settings_in_folder,
    volume_settings,
    write_report,
    write_settings,
)
from tests.pretrainings import tiny_plans


def test_orientation_summary__majority_and_those_that_differ() -> None:
    summary = orientation_summary({"a": "LPS", "b": "RAS", "c": "LPS", "d": None})
    assert summary == {"counts": {"LPS": 2, "RAS": 1}, "majority": "LPS", "different": {"b": "RAS"}}
    assert orientation_summary({"a": None}) == {"counts": {}, "majority": None, "different": {}}


def test_write_report__warns_in_one_line_and_names_ten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cases: dict[str, str | None] = {f"good_{i}": "LPS" for i in range(20)}
    cases |= {f"odd_{i:02d}": "RAS" for i in range(12)}
    with caplog.at_level(logging.WARNING, logger="nnssl"):
        write_report(tmp_path / "r.json", Findings({"x": "2-D"}, cases))
    orientation_line, left_out_line = (record.getMessage() for record in caplog.records)
    assert "LPS" in orientation_line and "12 of 32" in orientation_line
    assert "odd_09 (RAS), ..." in orientation_line
    assert "NibabelIOWithReorient" in orientation_line and "--reorient" in orientation_line
    assert "odd_10" not in orientation_line
    assert left_out_line == "left out: x: 2-D"
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["left_out"] == {"x": "2-D"}
    assert len(content["orientation"]["different"]) == 12


def test_recalled_orientations__of_the_first_report_and_then_of_any_other(tmp_path: Path) -> None:
    file = report_file(tmp_path, "plans", 4, 1)
    assert file.name == "plans_left_out_part_1_of_4.json"
    assert recalled_orientations(tmp_path, [file], {"a"}) == {}
    write_report(report_file(tmp_path, "a"), Findings(orientations={"a": "RAS"}))
    write_report(file, Findings(orientations={"a": "LPS", "b": "RAS", "c": "LPS"}))
    assert recalled_orientations(tmp_path, [file], {"a", "b"}) == {"a": "LPS", "b": "RAS"}
    assert recalled_orientations(tmp_path, [], {"a"}) == {"a": "RAS"}


def test_refuse_left_out() -> None:
    refuse_left_out("D", Findings(warnings={"a": ()}))
    with pytest.raises(UserError, match=r"--strict refuses .*a: 60 mm away; b: empty; d: 2-D"):
        refuse_left_out("D", Findings({"d": "2-D", "b": "empty"}, {}, {"a": ["60 mm away"], "c": []}))


def test_write_report__warnings_and_files_of_no_case(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "r.json"
    warnings: dict[str, Sequence[str]] = {f"case_{i:02d}": ["its origin is 60 mm away"] for i in range(12)}
    warnings["fine"] = []
    with caplog.at_level(logging.WARNING, logger="nnssl"):
        write_report(file, Findings(warnings=warnings), {"imagesTr/x.NII.GZ": "rename it"})
    *named, more, ignored = (record.getMessage() for record in caplog.records)
    assert named[0] == "case_00: its origin is 60 mm away" and len(named) == 10 and "2 more" in more
    assert ignored == "1 file belongs to no case: imagesTr/x.NII.GZ (rename it)"
    content = json.loads(file.read_text())
    assert len(content["warnings"]) == 12 and content["ignored"] == {"imagesTr/x.NII.GZ": "rename it"}
    assert read_report(file)["warnings"] == content["warnings"]
    assert read_report(tmp_path / "none.json")["warnings"] == {}


ONE, OTHER = {"spacing": [1, 1, 1], "preprocessor_name": "P"}, {"spacing": [2, 1, 1], "preprocessor_name": "P"}


def test_refuse_other_settings__compares_with_what_is_noted(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    refuse_other_settings(folder, ONE, "do it")  # nothing is known
    write_settings(folder, ONE)
    refuse_other_settings(folder, ONE, "do it")
    with pytest.raises(UserError, match=r"spacing changed.*do it"):
        refuse_other_settings(folder, OTHER, "do it")
    assert read_settings(folder) == ONE
    assert not folder.exists()  # the note is beside the body masks


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
