from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nnssl.core.geometry import (
    Box,
    bounding_box,
    overlaps_of_patches,
    random_crop_start,
    random_starts_around,
    sliding_window_boxes,
)

REFERENCE = json.loads((Path(__file__).parent / "reference" / "vox2vec.json").read_text())["sliding_window"]
PIMPIC = json.loads((Path(__file__).parent / "reference" / "pimpic.json").read_text())


def box(start: list[int], stop: list[int]) -> Box:
    return Box(np.array(start), np.array(stop))


def corners(boxes: list[Box]) -> list[list[list[int]]]:
    return [[b.start.tolist(), b.stop.tolist()] for b in boxes]


def test_random_crop_start__bounds_are_reached_and_kept() -> None:
    rng = np.random.default_rng(0)
    starts = np.array([random_crop_start(rng, (1, 6, 9), (4, 4, 4), (10, 10, 10)) for _ in range(500)])
    assert starts.min(0).tolist() == [0, 3, 6]  # max(0, anchor - patch + 1)
    assert starts.max(0).tolist() == [1, 6, 6]  # min(size - patch, anchor)
    counts = np.bincount(starts[:, 1])[3:]
    assert counts.min() > 90  # four starts, 125 expected each


def test_random_crop_start__small_volume_lies_inside_the_patch() -> None:
    rng = np.random.default_rng(1)
    starts = np.array([random_crop_start(rng, (2, 0, 4), (8, 5, 5), (5, 5, 9)) for _ in range(300)])
    assert sorted(set(starts[:, 0])) == [-3, -2, -1, 0]  # the padding before the volume varies
    assert set(starts[:, 1]) == {0}
    assert sorted(set(starts[:, 2])) == [0, 1, 2, 3, 4]


def test_random_crop_start__anchor_always_inside() -> None:
    rng = np.random.default_rng(2)
    for _ in range(300):
        size, patch = rng.integers(1, 9, 3), rng.integers(1, 9, 3)
        anchor = rng.integers(0, size)
        start = random_crop_start(rng, anchor, patch, size)
        assert np.all(start <= anchor) and np.all(anchor < start + patch)
        inside = np.maximum(0, np.minimum(start + patch, size) - np.maximum(start, 0))
        assert np.array_equal(inside, np.minimum(size, patch))  # as much image as there can be


def test_random_crop_start__same_seed_same_start() -> None:
    draws = [random_crop_start(np.random.default_rng(7), (5, 5, 5), (4, 4, 4), (30, 30, 30)) for _ in range(2)]
    assert np.array_equal(draws[0], draws[1])


@pytest.mark.parametrize(("anchor", "patch"), [((0, 0, 4), (2, 2, 2)), ((-1, 0, 0), (2, 2, 2)), ((0, 0, 0), (2, 0, 2))])
def test_random_crop_start__bad_arguments(anchor: tuple[int, ...], patch: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="anchor"):
        random_crop_start(np.random.default_rng(0), anchor, patch, (4, 4, 4))


def test_sliding_window_boxes__reference() -> None:
    boxes = sliding_window_boxes(REFERENCE["image"], REFERENCE["patch"], REFERENCE["overlap"])
    assert corners(boxes) == REFERENCE["boxes"]


@pytest.mark.parametrize("overlap", [(0, 0, 0), (1, 2, 3), (3, 3, 4), (2, 1, 0)])
@pytest.mark.parametrize("image", [(4, 4, 5), (3, 9, 11), (12, 8, 6)])
def test_sliding_window_boxes__cover_every_voxel(image: tuple[int, ...], overlap: tuple[int, ...]) -> None:
    boxes = sliding_window_boxes(image, (4, 4, 5), overlap)
    assert all(np.all(b.start >= 0) and np.all(b.stop <= image) for b in boxes)
    covered = np.zeros(image, dtype=bool)
    for b in boxes:
        covered[tuple(slice(*limits) for limits in zip(b.start, b.stop, strict=True))] = True
    assert covered.all()


def test_sliding_window_boxes__no_box_twice() -> None:
    boxes = sliding_window_boxes((8, 4, 4), (4, 4, 4), (2, 2, 2))
    assert [b.start.tolist() for b in boxes] == [[0, 0, 0], [2, 0, 0], [4, 0, 0]]


def test_sliding_window_boxes__bad_overlap() -> None:
    with pytest.raises(ValueError, match="overlap"):
        sliding_window_boxes((8, 8, 8), (4, 4, 4), (4, 0, 0))


def test_random_starts_around__bounds_are_reached_and_kept() -> None:
    rng, reach = np.random.default_rng(0), np.array([2, 3, 4])
    draws = [random_starts_around(rng, (12, 6, 4), (4, 4, 4), 50, reach) for _ in range(200)]
    anchors = np.array([anchor for anchor, _ in draws])
    assert anchors.min(0).tolist() == [0, 0, 0] and anchors.max(0).tolist() == [8, 2, 0]
    away = np.array([starts - anchor for anchor, starts in draws])
    assert away.min((0, 1)).tolist() == [-2, -2, 0] and away.max((0, 1)).tolist() == [2, 2, 0]
    starts = np.array([starts for _, starts in draws])
    assert starts.min((0, 1)).tolist() == [0, 0, 0] and starts.max((0, 1)).tolist() == [8, 2, 0]


def test_random_starts_around__small_volume_lies_inside_every_patch() -> None:
    rng = np.random.default_rng(1)
    draws = [random_starts_around(rng, (5, 1, 6), (8, 8, 6), 20, (6, 6, 4))[1] for _ in range(100)]
    starts = np.concatenate(draws)
    assert starts.min(0).tolist() == [-3, -7, 0] and starts.max(0).tolist() == [0, 0, 0]


@pytest.mark.parametrize("size", ["80x90x100", "160x160x128", "220x220x200"])
def test_random_starts_around__overlap_as_in_the_authors_sampler(size: str) -> None:
    """Their upper bounds are exclusive, which makes the means up to 2 % larger."""
    expected, rng = PIMPIC["sampler"][size], np.random.default_rng(0)
    pairs, shares = [], []
    for _ in range(100):
        _, starts = random_starts_around(rng, [int(n) for n in size.split("x")], [64] * 3, 32, [51] * 3)
        share = overlaps_of_patches(starts, [64] * 3)[0][np.triu_indices(32, 1)]
        pairs.append((share >= PIMPIC["pair_threshold"]["value"]).sum())
        shares.append(share.mean())
    for found, name in ((shares, "mean_S"), (pairs, "pairs_used_by_PiC_of_496")):
        of_mean = expected[name]["std"] / np.sqrt(expected[name]["n"])
        assert abs(np.mean(found) - expected[name]["mean"]) <= 4 * of_mean + 0.02 * expected[name]["mean"], name


def test_overlaps_of_patches__reference_matrix() -> None:
    case = PIMPIC["intersection_matrix"]
    fraction, _ = overlaps_of_patches(np.array(case["coords"])[:, 0], case["patch"])
    np.testing.assert_allclose(fraction, case["S"], rtol=0, atol=1e-12)


def test_overlaps_of_patches__boxes_show_the_same_voxels_of_the_volume() -> None:
    rng, patch = np.random.default_rng(0), np.array([4, 5, 6])
    volume = np.arange(14 * 15 * 16).reshape(14, 15, 16)
    starts = rng.integers(0, [10, 10, 10], (9, 3), endpoint=True)
    crops = [volume[tuple(map(slice, s, s + patch))] for s in starts]
    fraction, boxes = overlaps_of_patches(starts, patch)
    np.testing.assert_array_equal(fraction, fraction.T)
    assert (np.diag(fraction) == 1).all() and (fraction == 0).any()
    sides = np.maximum(patch - np.abs(starts[:, None] - starts), 0) / patch
    np.testing.assert_allclose(fraction, sides.prod(-1))
    for i, j in np.ndindex(9, 9):
        both = [crops[a][tuple(map(slice, *boxes[a, b]))] for a, b in ((i, j), (j, i))]
        np.testing.assert_array_equal(both[0], both[1])
        assert both[0].size == len(np.intersect1d(crops[i], crops[j])) == round(fraction[i, j] * patch.prod())


def test_bounding_box__is_the_smallest() -> None:
    mask = np.zeros((6, 7, 8), dtype=bool)
    mask[2, 3, 4] = mask[4, 1, 7] = True
    box = bounding_box(mask)
    assert box.start.tolist() == [2, 1, 4] and box.stop.tolist() == [5, 4, 8]
    with pytest.raises(ValueError, match="empty"):
        bounding_box(np.zeros((2, 2, 2), dtype=bool))
