from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nnssl.core.errors import UserError
from nnssl.core.figures import check_output, round_length, save_numbers


def test_check_output__a_png_in_a_folder_that_exists(tmp_path: Path) -> None:
    assert check_output(tmp_path / "a.png") == tmp_path / "a.png"
    with pytest.raises(UserError, match=r"must end in \.png"):
        check_output(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="of -o does not exist"):
        check_output(tmp_path / "b" / "a.png")
    (tmp_path / "c.png").mkdir()
    with pytest.raises(UserError, match=r"c\.png is a folder"):
        check_output(tmp_path / "c.png")


def test_check_output__keeps_what_is_not_of_an_earlier_picture(tmp_path: Path) -> None:
    """`-o case.png` beside case.nii.gz, the image itself."""
    (tmp_path / "case.nii.gz").touch()
    assert check_output(tmp_path / "case.png") == tmp_path / "case.png"
    with pytest.raises(UserError, match=r"case\.nii\.gz exists and would be overwritten"):
        check_output(tmp_path / "case.png", ".nii.gz")
    (tmp_path / "case.png").touch()
    assert check_output(tmp_path / "case.png", ".nii.gz") == tmp_path / "case.png"
    (tmp_path / "dataset.json").touch()
    with pytest.raises(UserError, match=r"dataset\.json exists"):
        check_output(tmp_path / "dataset.png")


def test_check_output__a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda folder, mode: False)
    with pytest.raises(UserError, match="cannot be written to"):
        check_output(tmp_path / "a.png")


def test_save_numbers__is_json_and_what_is_unknown_is_null(tmp_path: Path) -> None:
    save_numbers({"a": np.float32(0.5), "b": np.array([1.0, np.nan]), "c": [(np.int64(2), "x")]}, tmp_path / "f.png")
    assert json.loads((tmp_path / "f.json").read_text()) == {"a": 0.5, "b": [1.0, None], "c": [[2, "x"]]}


@pytest.mark.parametrize(("most", "length"), [(63.5, 50), (9.99, 5), (10, 10), (0.3, 0.2), (1.0, 1)])
def test_round_length__is_1_2_or_5(most: float, length: float) -> None:
    assert round_length(most) == pytest.approx(length)
