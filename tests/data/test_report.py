from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from nnssl.core.errors import UserError
from nnssl.data.report import (
    earlier_orientations,
    earlier_warnings,
    orientation_summary,
    refuse_left_out,
    report_file,
    write_report,
)


def test_orientation_summary__majority_and_those_that_differ() -> None:
    summary = orientation_summary({"a": "LPS", "b": "RAS", "c": "LPS", "d": None})
    assert summary == {"counts": {"LPS": 2, "RAS": 1}, "majority": "LPS", "different": {"b": "RAS"}}
    assert orientation_summary({"a": None}) == {"counts": {}, "majority": None, "different": {}}


def test_write_report__warns_in_one_line_and_names_ten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cases: dict[str, str | None] = {f"good_{i}": "LPS" for i in range(20)}
    cases |= {f"odd_{i:02d}": "RAS" for i in range(12)}
    with caplog.at_level(logging.WARNING, logger="nnssl"):
        write_report(tmp_path / "r.json", {"x": "2-D"}, cases)
    orientation_line, left_out_line = (record.getMessage() for record in caplog.records)
    assert "LPS" in orientation_line and "12 of 32" in orientation_line
    assert "odd_09 (RAS), ..." in orientation_line
    assert "NibabelIOWithReorient" in orientation_line and "--reorient" in orientation_line
    assert "odd_10" not in orientation_line
    assert left_out_line == "left out: x: 2-D"
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["left_out"] == {"x": "2-D"}
    assert len(content["orientation"]["different"]) == 12


def test_earlier_orientations__are_recalled(tmp_path: Path) -> None:
    file = report_file(tmp_path, "plans", 4, 1)
    assert file.name == "plans_left_out_part_1_of_4.json"
    assert earlier_orientations(file, {"a"}) == {}
    write_report(file, {}, {"a": "LPS", "b": "RAS", "c": "LPS"})
    assert earlier_orientations(file, {"a", "b"}) == {"a": "LPS", "b": "RAS"}


def test_refuse_left_out() -> None:
    refuse_left_out("D", {})
    with pytest.raises(UserError, match="a: 2-D; b: empty"):
        refuse_left_out("D", {"b": "empty", "a": "2-D"})


def test_write_report__warnings_and_files_of_no_case(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "r.json"
    warnings = {f"case_{i:02d}": ["its origin is 60 mm away"] for i in range(12)} | {"fine": []}
    with caplog.at_level(logging.WARNING, logger="nnssl"):
        write_report(file, {}, {}, warnings, {"imagesTr/x.NII.GZ": "rename it"})
    *named, more, ignored = (record.getMessage() for record in caplog.records)
    assert named[0] == "case_00: its origin is 60 mm away" and len(named) == 10 and "2 more" in more
    assert ignored == "1 file belongs to no case: imagesTr/x.NII.GZ (rename it)"
    content = json.loads(file.read_text())
    assert len(content["warnings"]) == 12 and content["ignored"] == {"imagesTr/x.NII.GZ": "rename it"}
    assert earlier_warnings(file, {"case_03", "fine", "gone"}) == {"case_03": ["its origin is 60 mm away"]}
    assert earlier_warnings(tmp_path / "none.json", {"case_03"}) == {}


def test_refuse_left_out__warnings_too() -> None:
    refuse_left_out("D", {}, {"a": ()})
    with pytest.raises(UserError, match=r"--strict refuses .*a: 60 mm away; b: empty"):
        refuse_left_out("D", {"b": "empty"}, {"a": ["60 mm away"], "c": []})
