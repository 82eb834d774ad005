from __future__ import annotations

import numpy as np
import pytest

from nnssl.demo.anatomy import LABELS
from nnssl.demo.phantom import SHAPE, Torso, make_torso

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
