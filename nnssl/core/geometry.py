"""Boxes of voxels: pure functions of arrays, axes in the order of the volume's array (Z, Y, X)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


class Box(NamedTuple):
    """The voxels start <= v < stop of an image; start may be negative and stop beyond the image where it is padded."""

    start: Integers  # (3,)
    stop: Integers  # (3,)


def bounding_box(mask: NDArray[np.bool_]) -> Box:
    """Smallest box of a three-dimensional mask that holds all its voxels.

    Raises:
        ValueError: the mask is empty.
    """
    plane: NDArray[np.bool_] = np.any(mask, axis=0)
    occupied = [
        np.flatnonzero(line) for line in (np.any(mask, axis=(1, 2)), np.any(plane, axis=1), np.any(plane, axis=0))
    ]
    if len(occupied[0]) == 0:
        raise ValueError("the mask is empty")
    start, stop = np.array([(line[0], line[-1] + 1) for line in occupied], dtype=np.int64).T
    return Box(start, stop)


def random_crop_start(
    rng: np.random.Generator,
    anchor: Sequence[int] | Integers,
    patch: Sequence[int] | Integers,
    size: Sequence[int] | Integers,
) -> Integers:
    """Draw where a patch that holds the anchor voxel starts, uniformly over all starts (methods.md 1.1, step 2).

    On an axis on which the volume is smaller than the patch, the patch holds all of the volume, and the share of the
    padding before it is drawn: the start is then negative or 0.

    Args:
        rng: source of the draw; one draw an axis.
        anchor: (3,) voxel, 0 <= anchor < size.
        patch: (3,) size of the patch in voxels.
        size: (3,) size of the volume in voxels.

    Returns:
        (3,) first voxel of the patch.

    Raises:
        ValueError: the anchor is not in the volume, or a patch axis is not positive.
    """
    at, extent, whole = (np.asarray(values, dtype=np.int64) for values in (anchor, patch, size))
    if np.any(at < 0) or np.any(at >= whole) or np.any(extent < 1):
        raise ValueError(
            f"anchor {at.tolist()} must be in a volume of {whole.tolist()}, and patch {extent.tolist()} positive"
        )
    room = whole - extent
    lowest = np.maximum(np.minimum(room, 0), at - extent + 1)
    highest = np.minimum(np.maximum(room, 0), at)
    return rng.integers(lowest, highest, endpoint=True)


def sliding_window_boxes(image: Sequence[int], patch: Sequence[int], overlap: Sequence[int]) -> list[Box]:
    """Cover an image with patches that overlap, the last one of each axis shifted inside (methods.md 1.5).

    Args:
        image: (3,) size of the image in voxels.
        patch: (3,) size of the patches; an axis on which the image is smaller gets one box of the image's size.
        overlap: (3,) least number of voxels that neighbours share, 0 <= overlap < patch.

    Returns:
        Boxes inside the image, last axis fastest.

    Raises:
        ValueError: an overlap is out of its range.
    """
    if not all(0 <= o < p for o, p in zip(overlap, patch, strict=True)):
        raise ValueError(f"overlap {list(overlap)} must be at least 0 and less than patch {list(patch)}")
    starts = [
        [*range(0, size - extent, extent - shared), max(size - extent, 0)]
        for size, extent, shared in zip(image, patch, overlap, strict=True)
    ]
    extents = np.minimum(image, patch).astype(np.int64)
    corners = (np.array(corner, dtype=np.int64) for corner in product(*starts))
    return [Box(corner, corner + extents) for corner in corners]


def random_starts_around(
    rng: np.random.Generator,
    size: Sequence[int] | Integers,
    patch: Sequence[int] | Integers,
    count: int,
    reach: Sequence[int] | Integers,
) -> tuple[Integers, Integers]:
    """Draw where patches around a random anchor patch start, all uniformly (PiMPiC; methods.md 3.1).

    The anchor patch is anywhere in the volume. Each patch is in the volume too and starts at most `reach` voxels from
    the start of the anchor; patches do not depend on each other. Bounds are inclusive. On an axis on which the volume
    is smaller than the patch, every patch holds all of the volume, and the share of the padding before it is drawn.

    Args:
        rng: source of the draws.
        size: (3,) size of the volume in voxels.
        patch: (3,) size of the patches in voxels.
        count: number of patches.
        reach: (3,) voxels, >= 0.

    Returns:
        First voxel of the anchor (3,) and of the patches (count, 3); negative where a patch begins before the volume.
    """
    room, away = np.subtract(size, patch), np.asarray(reach)
    lowest, highest = np.minimum(room, 0), np.maximum(room, 0)
    anchor = rng.integers(lowest, highest, endpoint=True)
    first, last = np.maximum(lowest, anchor - away), np.minimum(highest, anchor + away)
    return anchor, rng.integers(first, last, (count, 3), endpoint=True)


def overlaps_of_patches(starts: Integers, patch: Sequence[int] | Integers) -> tuple[NDArray[np.float64], Integers]:
    """Overlaps of all pairs of equally sized patches (PiMPiC's matrix S; methods.md 3.1).

    Args:
        starts: (N, 3) first voxel of each patch.
        patch: (3,) size of the patches in voxels.

    Returns:
        fraction: (N, N), number of common voxels over that of a patch; 1 on the diagonal, symmetric.
        boxes: (N, N, 2, 3), [i, j] is [start, stop) of the overlap of patches i and j in voxels of patch i; 0 without
            one.
    """
    shift = starts - starts[:, None]
    start, stop = np.maximum(shift, 0), np.minimum(shift, 0) + np.asarray(patch)
    sides = np.maximum(stop - start, 0)
    fraction = (sides / np.asarray(patch)).prod(-1)
    meet = (sides > 0).all(-1)[..., None, None]
    return fraction, np.where(meet, np.stack([start, stop], axis=2), 0)
