from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from nnssl.data.raw import read_raw_dataset
from nnssl.demo.anatomy import LABELS
from nnssl.demo.phantom import LABELLED, UNLABELLED, write_labelled, write_unlabelled


def test_write_unlabelled__a_raw_dataset_without_labels(tmp_path: Path) -> None:
    folder = write_unlabelled(tmp_path, 2)
    assert folder == tmp_path / UNLABELLED
    dataset = read_raw_dataset(tmp_path, UNLABELLED)
    assert list(dataset.cases) == ["torso_000", "torso_001"] and not dataset.labelled and not dataset.left_out
    assert dataset.ct_channel == 0
    assert not (folder / "labelsTr").exists()


def test_write_labelled__training_and_test_cases_of_other_patients(tmp_path: Path) -> None:
    folder = write_labelled(tmp_path, 1, 1)
    dataset = read_raw_dataset(tmp_path, LABELLED)
    assert dataset.labelled and list(dataset.cases) == ["organs_000"] and not dataset.left_out
    assert dataset.dataset_json["labels"] == {"background": 0, **LABELS}
    assert dataset.dataset_json["numTraining"] == 1
    images = [
        sitk.ReadImage(str(folder / f"images{p}" / f"organs_00{i}_0000.nii.gz")) for i, p in enumerate(("Tr", "Ts"))
    ]
    labels = [sitk.ReadImage(str(folder / f"labels{p}" / f"organs_00{i}.nii.gz")) for i, p in enumerate(("Tr", "Ts"))]
    for image, label in zip(images, labels, strict=True):
        assert image.GetSize() == label.GetSize() and image.GetSpacing() == label.GetSpacing()
        assert image.GetSpacing()[2] > 3.4  # z comes last
        assert image.GetDirection() == (1, 0, 0, 0, 1, 0, 0, 0, 1)
        assert set(np.unique(sitk.GetArrayFromImage(label))) == {0, *LABELS.values()}
    one, other = (sitk.GetArrayFromImage(image) for image in images)
    assert not np.array_equal(one, other)


def test_write_labelled__other_patients_than_the_unlabelled_ones(tmp_path: Path) -> None:
    first = write_unlabelled(tmp_path, 1) / "imagesTr" / "torso_000_0000.nii.gz"
    second = write_labelled(tmp_path, 1, 0) / "imagesTr" / "organs_000_0000.nii.gz"
    one, other = (sitk.GetArrayFromImage(sitk.ReadImage(str(file))) for file in (first, second))
    assert not np.array_equal(one, other)
