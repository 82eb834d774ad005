from __future__ import annotations

import numpy as np
import pytest

from nnssl.core.geometry import Box
from nnssl.methods.voco.augment import (
    base_starts,
    overlap_labels,
    place_slab,
    random_crop_starts,
)
from tests.networks.helpers import load_reference

REFERENCE = load_reference("voco.json")
OFFICIAL_GRID, OFFICIAL_BASE = (4, 4, 1), (96, 96, 96)  # in the order of axes of the authors: x, y, z
GRIDS = [(1, 4, 4), (4, 4, 2), (3, 3, 2), (2, 2, 2), (1, 1, 2)]


def test_overlap_labels__as_the_code() -> None:
    bases = base_starts(OFFICIAL_GRID, OFFICIAL_BASE)
    for case in REFERENCE["position_labels"]["cases"]:
        crop = np.array([[case["center"][0] - 48, case["center"][1] - 48, 0]])
        labels = overlap_labels(crop, bases, OFFICIAL_BASE)[0]
        np.testing.assert_allclose(labels, case["labels"], rtol=0, atol=1e-9)
        assert abs(labels.sum() - case["sum"]) < 1e-12


def test_base_starts__tile_the_slab_in_the_codes_order() -> None:
    bases = base_starts(OFFICIAL_GRID, OFFICIAL_BASE)
    assert len(bases) == REFERENCE["base"]["n"]
    assert bases[5].tolist() == REFERENCE["base"]["base5_first_voxel_source"]
    assert bases.tolist() == [[96 * i, 96 * j, 0] for i in range(4) for j in range(4)]  # k = 4 i + j


@pytest.mark.parametrize("grid", GRIDS)
def test_overlap_labels__are_counted_voxels_and_sum_to_one(grid: tuple[int, int, int]) -> None:
    base = (3, 5, 4)
    rng = np.random.default_rng(0)
    bases = base_starts(grid, base)
    owner = np.full(np.array(grid) * base, -1)
    for k, (z, y, x) in enumerate(bases):
        box = (slice(z, z + 3), slice(y, y + 5), slice(x, x + 4))
        assert (owner[box] == -1).all()
        owner[box] = k
    assert (owner >= 0).all(), "the bases tile the slab"
    crops = random_crop_starts(rng, 40, grid, base)
    labels = overlap_labels(crops, bases, base)
    split = sum(g > 1 for g in grid)
    for crop, row in zip(crops, labels, strict=True):
        z, y, x = crop
        inside = owner[z : z + 3, y : y + 5, x : x + 4]
        assert inside.size == 60, "the crop lies in the slab"
        np.testing.assert_allclose(row, np.bincount(inside.ravel(), minlength=len(bases)) / 60, rtol=0, atol=1e-15)
        assert (row > 0).sum() <= 2**split
        assert round(row.sum() * 60) == 60 and abs(row.sum() - 1) < 1e-15


@pytest.mark.parametrize("grid", GRIDS)
def test_overlap_labels__of_a_crop_that_equals_a_base_are_one_hot(grid: tuple[int, int, int]) -> None:
    bases = base_starts(grid, (7, 6, 5))
    np.testing.assert_array_equal(overlap_labels(bases, bases, (7, 6, 5)), np.eye(len(bases)))


def test_random_crop_starts__include_both_ends_and_are_uniform() -> None:
    starts = random_crop_starts(np.random.default_rng(0), 40_000, (1, 4, 3), (8, 2, 3))
    assert starts[:, 0].max() == 0, "one base along an axis leaves no room"
    for axis, last in ((1, 6), (2, 6)):
        counts = np.bincount(starts[:, axis])
        assert len(counts) == last + 1
        np.testing.assert_allclose(counts / 40_000, 1 / (last + 1), atol=0.01)


def test_overlap_labels__have_the_statistics_of_the_authors_sampler() -> None:
    expected = REFERENCE["sampler"]
    crops = random_crop_starts(np.random.default_rng(0), 20_000, OFFICIAL_GRID, OFFICIAL_BASE)
    labels = overlap_labels(crops, base_starts(OFFICIAL_GRID, OFFICIAL_BASE), OFFICIAL_BASE)
    positive = (labels > 0).sum(1)
    assert positive.max() == expected["nonzero_per_crop"]["max"] == 4
    assert (
        abs(positive.mean() - expected["nonzero_per_crop"]["mean"]) < 0.02
    )  # of 289 places 4 give one base; of 288 it was 3
    assert abs(labels.max(1).mean() - expected["max_label"]["mean"]) < 0.006
    np.testing.assert_allclose(labels.mean(0).reshape(4, 4), expected["mean_label_per_base"], atol=0.006)


def _box(start: tuple[int, ...], stop: tuple[int, ...]) -> Box:
    return Box(np.array(start), np.array(stop))


@pytest.mark.parametrize("shrink", [True, False])
def test_place_slab__lies_in_a_larger_body_and_holds_the_anchor(shrink: bool) -> None:
    body, anchor = _box((5, 10, 0), (30, 70, 90)), np.array([20, 12, 40])
    rng = np.random.default_rng(0)
    starts = []
    for _ in range(200):
        start, base = place_slab(rng, anchor, body, (1, 4, 4), (10, 8, 9), shrink)
        slab = base * (1, 4, 4)
        assert base.tolist() == [10, 8, 9]
        assert (start >= body.start).all() and (start + slab <= body.stop).all()
        assert (start <= anchor).all() and (anchor < start + slab).all()
        starts.append(start)
    spread = np.ptp(starts, axis=0)
    assert (spread > (5, 1, 25)).all(), "the place is drawn"


def test_place_slab__shrinks_to_a_smaller_body_and_covers_it() -> None:
    body, anchor = _box((3, 0, 7), (13, 30, 100)), np.array([5, 5, 50])
    for seed in range(20):
        start, base = place_slab(np.random.default_rng(seed), anchor, body, (1, 4, 4), (16, 16, 16), True)
        assert base.tolist() == [10, 8, 16]  # the body has 10 x 30 x 93 voxels
        assert start[0] == 3 and -2 <= start[1] <= 0 and 7 <= start[2] <= 36
        assert start[1] + 32 >= 30


def test_place_slab__without_shrinking_a_smaller_body_lies_whole_in_it() -> None:
    body, anchor = _box((3, 0, 7), (13, 30, 100)), np.array([5, 5, 50])
    starts = []
    for seed in range(60):
        start, base = place_slab(np.random.default_rng(seed), anchor, body, (1, 4, 4), (16, 16, 16), False)
        assert base.tolist() == [16, 16, 16]
        slab = base * (1, 4, 4)
        assert (start[:2] <= body.start[:2]).all() and (start + slab >= body.stop)[:2].all()
        starts.append(start)
    assert (np.ptp(starts, axis=0) > (3, 20, 15)).all()
