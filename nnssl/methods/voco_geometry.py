"""The geometry of VoCo: a grid of base crops that tile a slab, and the labels of crops in it. Pure functions of arrays.

Nothing here knows the order of the axes; bases are numbered with the last axis fastest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nnssl.geometry import Box, Integers, random_crop_start


def place_slab(
    rng: np.random.Generator,
    anchor: Integers,
    body: Box,
    grid: Sequence[int],
    base_size: Sequence[int],
    shrink: bool,
) -> tuple[Integers, Integers]:
    """Choose where a slab of grid * base voxels lies in a volume.

    It holds the anchor. On an axis on which the body is longer it lies inside the body's box, uniformly over all such
    places; else it holds the whole box, and how much of the rest is before it is drawn.

    Args:
        rng: source of the draw.
        anchor: (3,) voxel of the body.
        body: bounding box of the body.
        grid: bases along each axis.
        base_size: size of a base in voxels.
        shrink: take smaller bases on an axis on which the slab is longer than the body: the least that still cover it.
            The authors resize every volume to their slab (methods.md 2.1); as bases and crops are resized afterwards
            this is the same without a second interpolation.

    Returns:
        (3,) first voxel of the slab, in the volume and possibly outside of it, and (3,) the size of the bases.
    """
    extent = body.stop - body.start
    base = np.asarray(base_size, dtype=np.int64)
    if shrink:
        base = np.minimum(base, -(-extent // np.asarray(grid)))
    return body.start + random_crop_start(rng, anchor - body.start, base * grid, extent), base


def base_starts(grid: Sequence[int], base: Sequence[int] | Integers) -> Integers:
    """First voxels (n, 3) of the bases in the slab, which they tile; n is the product of the grid."""
    cells = np.stack(np.unravel_index(np.arange(np.prod(grid)), tuple(grid)), axis=1)
    return (cells * np.asarray(base)).astype(np.int64)


def random_crop_starts(
    rng: np.random.Generator, count: int, grid: Sequence[int], base: Sequence[int] | Integers
) -> Integers:
    """First voxels (count, 3) of crops of the bases' size, uniform over all that lie in the slab.

    Both ends are included (the authors' code never draws the last one; methods.md 2.1).
    """
    room = (np.asarray(grid) - 1) * np.asarray(base)
    return rng.integers(0, room, size=(count, len(room)), endpoint=True)


def overlap_labels(crops: Integers, bases: Integers, base: Sequence[int] | Integers) -> NDArray[np.float64]:
    """Labels y (M, n): the part of the crop that lies in each base, as volumes (paper, section 3.2).

    Bases that tile a slab share out a crop that lies in it: a row sums to 1 and has at most 2^3 entries that are not 0.

    Args:
        crops: (M, 3) first voxels of the crops.
        bases: (n, 3) first voxels of the bases.
        base: (3,) size of crops and bases.
    """
    distance = np.abs(crops[:, None] - bases)
    shared = np.maximum(np.asarray(base) - distance, 0).prod(-1)
    return shared / np.prod(np.asarray(base, dtype=np.int64))
