from __future__ import annotations

from pathlib import Path

import pytest

from nnssl.data.folders import dataset_id, dataset_name, existing_datasets, require_folders
from nnssl.errors import UserError
from tests.data.conftest import Folders


def test_require_folders__missing_variable_names_the_line_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("nnUNet_results", raising=False)
    with pytest.raises(UserError, match="export nnUNet_results=/path/to/nnUNet_results"):
        require_folders("nnUNet_results")


def test_require_folders__makes_all_but_raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "a" / "b"))
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "typo"))
    assert require_folders("nnUNet_preprocessed") == (tmp_path / "a" / "b",)
    assert (tmp_path / "a" / "b").is_dir()
    with pytest.raises(UserError, match=r"nnUNet_raw=.*typo is not a folder"):
        require_folders("nnUNet_raw")
    assert not (tmp_path / "typo").exists()


def test_require_folders__that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "file" / "results"))
    with pytest.raises(UserError, match="cannot be made"):
        require_folders("nnUNet_results")


def test_dataset_name__by_number_text_and_name(folders: Folders) -> None:
    (folders.raw / "Dataset007_Knee").mkdir()
    (folders.preprocessed / "Dataset008_Hip").mkdir()
    assert [dataset_name(d) for d in (7, "7", "007", "Dataset007_Knee", 8)] == ["Dataset007_Knee"] * 4 + [
        "Dataset008_Hip"
    ]
    assert existing_datasets() == ["Dataset007_Knee", "Dataset008_Hip"]
    assert dataset_id("Dataset007_Knee") == 7


@pytest.mark.parametrize("unknown", [9, "Dataset009_X", "knee", "-7"])
def test_dataset_name__unknown_lists_what_exists(folders: Folders, unknown: int | str) -> None:
    (folders.raw / "Dataset007_Knee").mkdir()
    with pytest.raises(UserError, match=rf"no dataset {unknown} .*Dataset007_Knee"):
        dataset_name(unknown)


def test_dataset_name__two_of_one_number(folders: Folders) -> None:
    (folders.raw / "Dataset007_Knee").mkdir()
    (folders.preprocessed / "Dataset007_Hip").mkdir()
    with pytest.raises(UserError, match="several datasets"):
        dataset_name(7)
