"""Copies of volumes that lie around one structure."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnssl.core.files import write_json

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def crops(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("pays_crops")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Six volumes with a ball in their middle; voxels of an image are their numbers."""
    folder = tmp_path / "Dataset501_Balls"
    ball = np.asarray(sum(axis**2 for axis in np.ogrid[-1:1:20j, -1:1:24j, -1:1:28j]) < 0.25)
    for case in range(6):
        for name, values in (
            ("imagesTr", np.arange(ball.size, dtype=np.int32).reshape(ball.shape)),
            ("labelsTr", ball),
        ):
            (folder / name).mkdir(parents=True, exist_ok=True)
            image = sitk.GetImageFromArray(values.astype(np.int32))
            image.SetSpacing((1.0, 2.0, 3.0))
            ending = "_0000.nii.gz" if name == "imagesTr" else ".nii.gz"
            sitk.WriteImage(image, str(folder / name / f"ball_{case}{ending}"))
    write_json(folder / "dataset.json", {"channel_names": {"0": "CT"}, "labels": {"background": 0, "ball": 1},
                                         "numTraining": 6, "file_ending": ".nii.gz"})  # fmt: skip
    return folder


def test_crop_aside__the_structure_is_whole_and_no_longer_in_the_middle(
    crops: Any, source: Path, tmp_path: Path
) -> None:
    before = [sitk.GetArrayFromImage(sitk.ReadImage(str(f))) for f in sorted((source / "labelsTr").iterdir())]
    target = tmp_path / crops.copy_name(source.name, 511)
    maps = crops.crop_aside(source, target)
    assert target.name == "Dataset511_BallsAside" and (target / "dataset.json").is_file()
    assert [m.sum() for m in maps] == [m.sum() for m in before]
    assert all(m.size < 0.75 * b.size for m, b in zip(maps, before, strict=True))
    assert crops.ellipsoid_dice(before) > 0.9 > crops.ellipsoid_dice(maps) + 0.2
    assert len({m.shape for m in maps}) > 1


def test_crop_aside__image_and_labels_are_cut_alike_and_keep_their_place(
    crops: Any, source: Path, tmp_path: Path
) -> None:
    crops.crop_aside(source, tmp_path / "copy")
    for file in sorted((tmp_path / "copy" / "labelsTr").iterdir()):
        labels = sitk.ReadImage(str(file))
        image = sitk.ReadImage(str(tmp_path / "copy" / "imagesTr" / file.name.replace(".nii.gz", "_0000.nii.gz")))
        whole = sitk.ReadImage(str(source / "labelsTr" / file.name))
        numbers = sitk.GetArrayFromImage(image)
        assert image.GetOrigin() == labels.GetOrigin() and image.GetSpacing() == (1.0, 2.0, 3.0)
        assert np.array_equal(sitk.GetArrayFromImage(labels), sitk.GetArrayFromImage(whole).ravel()[numbers])
        first = whole.TransformPhysicalPointToIndex(image.GetOrigin())[::-1]
        assert int(numbers[0, 0, 0]) == np.ravel_multi_index(first, sitk.GetArrayFromImage(whole).shape)
