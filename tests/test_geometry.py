from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nnssl.geometry import (
    Box,
    box_volume,
    inner_boxes,
    intersection,
    random_crop_start,
    sliding_window_boxes,
    union_box,
)

REFERENCE = json.loads((Path(__file__).parent / "reference" / "vox2vec.json").read_text())["sliding_window"]


def box(start: list[int], stop: list[int]) -> Box:
    return Box(np.array(start), np.array(stop))


def corners(boxes: list[Box]) -> list[list[list[int]]]:
    return [[b.start.tolist(), b.stop.tolist()] for b in boxes]


def test_intersection__overlapping() -> None:
    both = intersection(box([0, 0, 0], [4, 5, 6]), box([2, -1, 3], [9, 2, 4]))
    assert corners([both]) == [[[2, 0, 3], [4, 2, 4]]]
    assert box_volume(both) == 2 * 2 * 1


@pytest.mark.parametrize("start", [[4, 0, 0], [9, 9, 9]])
def test_intersection__disjoint_is_empty(start: list[int]) -> None:
    assert box_volume(intersection(box([0, 0, 0], [4, 4, 4]), box(start, [12, 12, 12]))) == 0


def test_union_box__holds_both() -> None:
    assert corners([union_box(box([0, 3, 1], [2, 4, 9]), box([1, -2, 2], [5, 1, 3]))]) == [[[0, -2, 1], [5, 4, 9]]]


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
    assert corners(inner_boxes(boxes, REFERENCE["image"], REFERENCE["overlap"])) == REFERENCE["pasted"]


@pytest.mark.parametrize("overlap", [(0, 0, 0), (1, 2, 3), (3, 3, 4), (2, 1, 0)])
@pytest.mark.parametrize("image", [(4, 4, 5), (3, 9, 11), (12, 8, 6)])
def test_inner_boxes__cover_every_voxel(image: tuple[int, ...], overlap: tuple[int, ...]) -> None:
    boxes = sliding_window_boxes(image, (4, 4, 5), overlap)
    assert all(np.all(b.start >= 0) and np.all(b.stop <= image) for b in boxes)
    covered = np.zeros(image, dtype=bool)
    for b in inner_boxes(boxes, image, overlap):
        covered[tuple(slice(*limits) for limits in zip(b.start, b.stop, strict=True))] = True
    assert covered.all()


def test_sliding_window_boxes__no_box_twice() -> None:
    boxes = sliding_window_boxes((8, 4, 4), (4, 4, 4), (2, 2, 2))
    assert [b.start.tolist() for b in boxes] == [[0, 0, 0], [2, 0, 0], [4, 0, 0]]


def test_sliding_window_boxes__bad_overlap() -> None:
    with pytest.raises(ValueError, match="overlap"):
        sliding_window_boxes((8, 8, 8), (4, 4, 4), (4, 0, 0))
