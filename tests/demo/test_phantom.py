from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnssl.data.raw import read_raw_dataset
from nnssl.demo.anatomy import LABELS
from nnssl.demo.patient import Grid, smooth_noise
from nnssl.demo.phantom import LABELLED, SHAPE, UNLABELLED, Torso, make_torso, write_labelled, write_unlabelled

RANGES = {  # HU within which the mean of an organ lies, without contrast and in any phase
    "liver": (35, 150),
    "spleen": (25, 165),
    "right_kidney": (15, 230),
    "left_kidney": (15, 230),
    "stomach": (-700, 90),
    "aorta": (20, 400),
}


@pytest.fixture(scope="module")
def torsos() -> list[Torso]:
    return [make_torso(np.random.default_rng(seed)) for seed in range(6)]


def _centre(torso: Torso, organ: str) -> np.ndarray:
    return np.argwhere(torso.labels == LABELS[organ]).mean(0) * torso.spacing


def test_make_torso__same_seed_same_patient(torsos: list[Torso]) -> None:
    again = make_torso(np.random.default_rng(3))
    assert np.array_equal(again.hu, torsos[3].hu) and np.array_equal(again.labels, torsos[3].labels)
    assert again.spacing == torsos[3].spacing
    assert not np.array_equal(again.labels, torsos[4].labels)


def test_make_torso__types_and_whole_range_of_hu(torsos: list[Torso]) -> None:
    for torso in torsos:
        assert torso.hu.shape == torso.labels.shape == SHAPE
        assert torso.hu.dtype == np.int16 and torso.labels.dtype == np.uint8
        assert -1024 <= torso.hu.min() < -900 and 300 < torso.hu.max() < 1500  # air and bone
        assert np.median(torso.hu[:, :3]) < -900  # in front of the patient is air
        assert 0.15 < (torso.hu > -500).mean() < 0.7  # the patient


def test_make_torso__every_organ_has_its_hu(torsos: list[Torso]) -> None:
    for torso in torsos:
        assert set(np.unique(torso.labels)) == {0, *LABELS.values()}
        for organ, (low, high) in RANGES.items():
            assert low < torso.hu[torso.labels == LABELS[organ]].mean() < high, organ


def test_make_torso__contrast_and_sizes_vary(torsos: list[Torso]) -> None:
    aorta = [torso.hu[torso.labels == LABELS["aorta"]].mean() for torso in torsos]
    liver = [(torso.labels == LABELS["liver"]).sum() * np.prod(torso.spacing) / 1e6 for torso in torsos]
    assert max(aorta) - min(aorta) > 50
    assert min(liver) > 0.5 and max(liver) < 3.5 and max(liver) / min(liver) > 1.15  # litres


def test_make_torso__no_value_tells_liver_from_spleen(torsos: list[Torso]) -> None:
    """An intensity alone must not solve the demo's task."""
    for torso in torsos:
        liver, spleen = (torso.hu[torso.labels == LABELS[organ]].astype(float) for organ in ("liver", "spleen"))
        assert abs(np.median(liver) - np.median(spleen)) < 80
    right, left = (
        np.mean([torso.hu[torso.labels == LABELS[o]].mean() for torso in torsos])
        for o in ("right_kidney", "left_kidney")
    )
    assert abs(right - left) < 15


def test_make_torso__organs_lie_where_they_belong(torsos: list[Torso]) -> None:
    """x runs to the patient's left, y to the back, z to the head: SimpleITK's default axes."""
    for torso in torsos:
        at = {organ: _centre(torso, organ) for organ in LABELS}
        assert at["liver"][2] + 50 < at["spleen"][2]
        assert at["right_kidney"][2] + 60 < at["aorta"][2] + 30 < at["left_kidney"][2]
        assert at["liver"][0] > at["right_kidney"][0] and at["spleen"][0] > at["left_kidney"][0]
        assert at["stomach"][1] < at["left_kidney"][1] and at["stomach"][2] > at["liver"][2]
        bone = np.argwhere(torso.hu[:, :, 40:68] > 350).mean(0)[1] * torso.spacing[1]
        assert at["aorta"][1] < bone  # in front of the spine


def test_make_torso__organs_are_in_one_piece_each(torsos: list[Torso]) -> None:
    from scipy import ndimage

    for torso in torsos:
        for organ in ("spleen", "right_kidney", "left_kidney"):  # the scan may end below the arch of the aorta
            pieces, _ = ndimage.label(torso.labels == LABELS[organ], np.ones((3, 3, 3)))
            largest = np.bincount(pieces.ravel())[1:].max()
            assert largest > 0.9 * (torso.labels == LABELS[organ]).sum(), organ


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


@pytest.fixture
def grid() -> Grid:
    z, y, x = np.meshgrid(*[np.arange(-10.0, 11.0, dtype=np.float32)] * 3, indexing="ij")
    return Grid(z, y, x)


def test_ellipsoid__one_on_its_surface(grid: Grid) -> None:
    ellipsoid = grid.ellipsoid((1, 0, 0), (4, 2, np.inf))
    assert ellipsoid[11, 10, 0] == 0  # its axis, however far along x
    assert ellipsoid[15, 10, 5] == pytest.approx(1) and ellipsoid[11, 8, 5] == pytest.approx(1)


def test_tube__distance_to_the_polyline(grid: Grid) -> None:
    tube = grid.tube([(0, 0, -5), (0, 0, 5), (0, 5, 5)])
    assert tube[10, 10, 10] == pytest.approx(0)
    assert tube[13, 10, 8] == pytest.approx(3)  # beside the first part
    assert tube[10, 10, 2] == pytest.approx(3)  # beyond its end
    assert tube[10, 15, 19] == pytest.approx(4)  # the second part


def test_smooth_noise__unit_deviation_and_smooth() -> None:
    noise = smooth_noise(np.random.default_rng(0), (60, 60, 60), (6, 5.5, 4))
    assert noise.shape == (60, 60, 60) and noise.dtype == np.float32
    assert noise.std() == pytest.approx(1, abs=0.1) and abs(noise.mean()) < 0.1
    assert np.abs(np.diff(noise, axis=0)).mean() < 0.25  # white noise: 1.13
