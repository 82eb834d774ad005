from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnssl.analysis.inputs import find_cases
from nnssl.core.errors import UserError
from tests.pretrainings import CT_JSON

TWO = {**CT_JSON, "channel_names": {"0": "T1", "1": "T2"}}


def _touch(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "raw/Dataset017_Some"
    _touch(folder / "imagesTr", "b_0000.nrrd", "a_0000.nrrd")
    _touch(folder / "imagesTs", "c_0000.nrrd")
    _touch(folder / "labelsTr", "a.nrrd")
    (folder / "imagesUn").mkdir()
    (folder / "dataset.json").write_text(json.dumps({**CT_JSON, "file_ending": ".nrrd"}))
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    return folder


def test_find_cases__of_a_dataset_by_number_name_or_folder(raw: Path) -> None:
    for images in ("17", "Dataset017_Some", raw):
        cases = find_cases(images, CT_JSON)
        assert [case.name for case in cases] == ["a", "b", "c"]  # of the dataset's own file ending
        assert cases[2].images == (str(raw / "imagesTs/c_0000.nrrd"),)


def test_find_cases__of_a_folder_or_one_image(tmp_path: Path) -> None:
    _touch(tmp_path, "a_0000.nii.gz", "a_0001.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz")
    cases = find_cases(tmp_path, TWO)
    assert [case.name for case in cases] == ["a", "b"] and len(cases[0].images) == 2
    for image in ("b", "b_0000.nii.gz", "b_0001.nii.gz"):
        assert find_cases(tmp_path / image, TWO) == [cases[1]]


def test_find_cases__what_is_wrong_is_said_before_anything_is_read(raw: Path, tmp_path: Path) -> None:
    _touch(raw / "imagesUn", "a_0000.nrrd")
    with pytest.raises(UserError, match="the case a in two of imagesTr, imagesUn, imagesTs"):
        find_cases("17", CT_JSON)
    with pytest.raises(UserError, match="there is no dataset 18"):
        find_cases("18", CT_JSON)
    with pytest.raises(UserError, match="there is no image"):
        find_cases(tmp_path / "none", CT_JSON)
    three = {**TWO, "channel_names": {"0": "T1", "1": "T2", "2": "T3"}}
    _touch(tmp_path / "images", "a_0000.nii.gz", "a_0001.nii.gz")
    with pytest.raises(UserError, match="'a' has 2 files with a channel number, the model wants 3"):
        find_cases(tmp_path / "images", three)
    _touch(tmp_path / "others", "brain_01.nii.gz")
    with pytest.raises(UserError, match=r"others/brain_01\.nii\.gz has no channel number; name images like"):
        find_cases(tmp_path / "others", CT_JSON)
    (raw / "dataset.json").write_text(json.dumps({**CT_JSON, "dataset": {"a": {"images": ["a"]}}}))
    with pytest.raises(UserError, match="lists its files itself"):
        find_cases("17", CT_JSON)


def test_find_cases__of_a_dataset_of_four_digits(raw: Path) -> None:
    raw.rename(raw.with_name("Dataset1017_Some"))
    for images in ("1017", "Dataset1017_Some"):
        assert [case.name for case in find_cases(images, CT_JSON)] == ["a", "b", "c"]
    with pytest.raises(UserError, match="no dataset 101"):
        find_cases("101", CT_JSON)
