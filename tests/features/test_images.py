from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnssl.core.errors import UserError
from nnssl.features.cases import find_cases
from nnssl.features.geometry import grid_geometry
from nnssl.features.images import ImageReader, PreparedImage, without_table
from tests.pretrainings import CT_JSON, tiny_plans

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


@dataclass
class Source:
    dataset_json: dict[str, Any] = field(default_factory=lambda: CT_JSON)
    orientation: str | None = "LPS"
    plans: dict[str, Any] = field(default_factory=tiny_plans)
    configuration: str = "3d_fullres"


def _channels(folder: Path, *names: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {str(i): n for i, n in enumerate(names)}}))


def _files(folder: Path, *names: str) -> list[tuple[str, ...]]:
    return [(str(folder / name),) for name in names]


@pytest.mark.parametrize("where", [".", "imagesTs"])
def test_ImageReader__a_dataset_json_beside_or_above_names_the_modality(
    tmp_path: Path, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    files = _files(tmp_path / where, "a_0000.nii.gz", "b_0000.nii.gz")
    _channels(tmp_path, "CT")
    ImageReader(Source(), files, allow=False)
    assert not caplog.messages
    _channels(tmp_path, "T2")
    with pytest.raises(UserError, match=r"MR \(T2\) in .*, CT in the pretraining on Dataset500_Source"):
        ImageReader(Source(), files, allow=False)
    ImageReader(Source(), files, allow=True)
    assert caplog.text.count("lets it pass") == 1


@pytest.mark.parametrize("content", [None, "{", "[]", '{"labels": {}}'])
def test_ImageReader__images_that_nothing_names_are_warned_of_once(
    tmp_path: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "x").mkdir()
    if content is not None:
        (tmp_path / "x" / "dataset.json").write_text(content)
    ImageReader(Source(), _files(tmp_path / "x", *map(str, range(30))) + _files(tmp_path / "y", "a"), allow=False)
    (warning,) = caplog.messages
    assert str(tmp_path / "x") in warning and str(tmp_path / "y") in warning and "CT" in warning


def test_ImageReader__of_more_channels_that_of_the_files_number_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _channels(tmp_path, "PET", "CT")
    ImageReader(Source(), _files(tmp_path, "a_0001.nii.gz"), allow=False)
    assert not caplog.messages
    with pytest.raises(UserError, match="PET in"):
        ImageReader(Source(), _files(tmp_path, "a_0000.nii.gz"), allow=False)
    ImageReader(Source(), _files(tmp_path, "a.nii.gz", "a_0007.nii.gz"), allow=False)
    assert len(caplog.messages) == 1


def _image(name: str, orientation: str | None, spacing: float = 3.0) -> PreparedImage:
    affine = np.diag([1.5, 1.5, spacing, 1.0])  # along the array's axes; the grid's come in another order
    geometry = grid_geometry(affine, affine, (2, 0, 1), [(0, 8)] * 3, [8] * 3)
    return PreparedImage(name, np.zeros((1, 8, 8, 8), np.float32), geometry, orientation)


def test_ImageReader__reports_orientations_and_voxels_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    guard = ImageReader(Source(dataset_json={}), [], allow=False)
    guard.report()
    assert not caplog.messages
    for image in (_image("a", "LPS"), _image("a", "LPS"), _image("b", "RAS"), _image("b", "LPI"), _image("c", None, 7)):
        assert guard.saw(image) is image
    guard.report()
    coarse, oriented = caplog.messages
    assert "c (7 x 1.5 x 1.5 mm) (1 of 4)" in coarse
    assert "b (RAS), b (another) (LPI) (2 of 4)" in oriented


def test_ImageReader__without_a_known_orientation_the_images_are_compared_among_each_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    guard = ImageReader(Source(orientation=None), [], allow=False)
    for image in (_image("a", None), _image("b", "LPS"), _image("c", "RAS")):
        guard.saw(image)
    guard.report()
    (warning,) = caplog.messages
    assert "than b (LPS): c (RAS)" in warning


def test_without_table__leaves_the_table_and_keeps_both_legs() -> None:
    body = np.zeros((10, 60, 80), dtype=bool)
    body[:, 10:35, 5:30] = body[:, 10:35, 45:70] = True
    legs = body.copy()
    body[:, 50:53] = True  # 6 mm thick
    body[:, 40:42, 10:12] = True  # a cable
    assert (without_table(body, np.array([3.0, 2.0, 2.0])) == legs).mean() > 0.98
    assert not without_table(body, np.array([3.0, 2.0, 2.0]))[:, 40:].any()
    thin = np.zeros_like(body)
    thin[:, 3:5] = True
    assert without_table(thin, np.array([3.0, 2.0, 2.0])) is thin
