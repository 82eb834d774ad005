from __future__ import annotations

from pathlib import Path

import pytest

from nnssl.core.errors import UserError
from nnssl.data.folders import dataset_argument, dataset_id, dataset_name, existing_datasets, require_folders
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


def test_dataset_name__numbers_of_four_and_more_digits_are_not_cut(folders: Folders) -> None:
    for name in ("Dataset150_Knee", "Dataset1500_Hip", "Dataset15000_Foot", "Dataset017_Arm", "Dataset1017_Hand"):
        (folders.raw / name).mkdir()
    asked = ("150", 1500, "15000", "17", "017", "1017", "Dataset1500_Hip")
    found = [dataset_name(each) for each in asked]
    assert [dataset_id(name) for name in found] == [150, 1500, 15000, 17, 17, 1017, 1500]
    assert found[-1] == found[1]


def test_dataset_name__only_in_results(folders: Folders) -> None:
    (folders.results / "Dataset500_Gone").mkdir()
    assert dataset_name(500) == dataset_name("Dataset500_Gone") == "Dataset500_Gone"


@pytest.mark.parametrize("odd", ["Dataset5_X", "../x", "Dataset500_a/b", "", ".", "9" * 5000, "٣", "Dataset500_\n"])
def test_dataset_name__what_is_no_name(folders: Folders, odd: str) -> None:
    (folders.raw / "Dataset5_X").mkdir()
    (folders.raw / "Dataset003_X").mkdir()
    with pytest.raises(UserError) as error:
        dataset_name(odd)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_dataset_name__a_linked_folder(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (folders.raw / "Dataset500_Linked").symlink_to(tmp_path / "elsewhere")
    assert dataset_name(500) == "Dataset500_Linked"


def test_dataset_id__of_no_name() -> None:
    with pytest.raises(UserError, match="Dataset500_Thorax"):
        dataset_id("Dataset5_X")


def test_dataset_argument__is_what_stock_nnunet_understands(folders: Folders) -> None:
    for name in ("Dataset150_Knee", "Dataset1500_Hip", "Dataset017_Arm"):
        (folders.raw / name).mkdir()
    expected = {"Dataset1500_Hip": "Dataset1500_Hip", "Dataset150_Knee": "Dataset150_Knee", "Dataset017_Arm": "17",
                "Dataset500_Gone": "500", "Dataset0017_Arm": "Dataset0017_Arm",
                "Dataset1500_a b": "'Dataset1500_a b'"}  # fmt: skip
    assert {name: dataset_argument(name) for name in expected} == expected
