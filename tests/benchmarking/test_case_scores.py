from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest

from nnssl.benchmarking.case_scores import Structure, dice, read_structures, read_tolerances, surface_dice
from nnssl.core.errors import UserError
from nnssl.data.raw import label_values
from tests.benchmarking.labels import LABELS, SPACING, cube
from tests.finetuning.plans import small_plans

REGIONS = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}


def test_read_structures__labels() -> None:
    found = read_structures({"labels": LABELS}, small_plans(), ["3", "spleen=1.5"])
    assert found == [Structure("liver", 1, 3.0), Structure("spleen", 2, 1.5)]


def test_read_structures__regions_and_no_ignored_voxels() -> None:
    found = read_structures({"labels": REGIONS, "regions_class_order": [1, 2]}, small_plans())
    assert found == [Structure("whole", (1, 2), 2.0), Structure("core", (2,), 2.0)]
    assert label_values({"labels": REGIONS}) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["1", "2"], "one number for all structures, not 2; write the others as liver=2"),
        (["kidney=1"], "names kidney, which is no structure .* liver, spleen"),
        (["liver=1", "liver=2"], "liver twice"),
        (["-1"], "at least 0, not -1"),
        (["liver=wide"], "not wide"),
        (["nan"], "not nan"),
    ],
)
def test_read_tolerances__mistakes(given: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        read_tolerances(given, ["liver", "spleen"])


CUBE = cube() > 0
EMPTY = np.zeros_like(CUBE)


def test_dice__by_counting() -> None:
    assert dice(CUBE, np.roll(CUBE, 2, axis=0)) == 2 * 4 * 36 / (2 * 216)
    assert dice(CUBE, CUBE) == 1 and dice(CUBE, EMPTY) == dice(EMPTY, CUBE) == 0


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_surface_dice__a_cube_moved_by_a_voxel_is_right_from_that_voxels_length_on(axis: int) -> None:
    moved = np.roll(CUBE, 1, axis)
    assert surface_dice(CUBE, moved, SPACING, SPACING[axis]) == 1
    # the two faces that it moved along, and what of the edges belongs to them, are out
    assert surface_dice(CUBE, moved, SPACING, 0.99 * SPACING[axis]) < 0.95


def test_surface_dice__the_share_of_two_faces() -> None:
    """Large, so that edges hardly count: of six faces of a cube that moves along z, those two are wrong."""
    large = np.zeros((60, 60, 60), bool)
    large[10:50, 10:50, 10:50] = True
    moved = np.roll(large, 1, axis=0)
    assert surface_dice(large, moved, (1, 1, 1), 0.5) == pytest.approx(4 / 6, abs=0.02)
    # 5 mm slices: of 2 * 1600 + 4 * 40 * 200 mm², the 3,200 of both ends
    assert surface_dice(large, moved, (5, 1, 1), 4.9) == pytest.approx(1 - 3200 / 35200, abs=0.02)
    assert surface_dice(large, moved, (5, 1, 1), 5) == 1


def test_surface_dice__at_the_border_of_the_volume() -> None:
    whole = np.ones((6, 6, 6), bool)
    assert surface_dice(whole, whole, (1, 1, 1), 0) == 1
    assert surface_dice(whole, CUBE[4:10, 4:10, 4:10], (2, 2, 2), 0) == 1


def test_surface_dice__one_slice_is_a_picture() -> None:
    picture = np.zeros((1, 20, 20), bool)
    picture[0, 5:15, 5:15] = True
    moved = np.roll(picture, 2, axis=2)
    assert surface_dice(picture, moved, (999, 3, 1), 2) == 1
    # upright lines of 4 x 30 mm are wrong, lying ones of 4 x 10 mm are right
    assert surface_dice(picture, moved, (999, 3, 1), 1.9) == pytest.approx(40 / 160, abs=0.03)


@pytest.mark.parametrize("score", [dice, partial(surface_dice, spacing=SPACING, tolerance=2.0)])
def test_absent__as_in_flare_or_left_out(score) -> None:  # type: ignore[no-untyped-def]
    assert score(EMPTY, EMPTY) == 1
    assert math.isnan(score(EMPTY, EMPTY, absent="exclude"))
    assert score(CUBE, EMPTY) == score(EMPTY, CUBE) == score(EMPTY, CUBE, absent="exclude") == 0
