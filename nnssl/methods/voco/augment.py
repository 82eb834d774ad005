"""VoCo's sampling: base crops that tile the body or a slab of it, random crops with labels, and the augmentation.

The geometry does not depend on the order of the axes; bases are numbered with the last axis fastest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nnssl.core.geometry import Box, Integers, random_crop_start
from nnssl.methods.base import Volume

_WINDOW_CT, _RANGE_OTHERS = 425.0, 2350.0  # width of [-175, 250] HU [C], and of `Volume.hu_affine` without HU


def tile_body(values: NDArray[Any], grid: Sequence[int]) -> tuple[NDArray[Any], Integers]:
    """Tile a whole body with the grid (paper, section 3.2): every voxel is in exactly one base.

    Args:
        values: (C, z, y, x) of the body.
        grid: bases along each axis.

    Returns:
        (C, *(grid * base)) slab: the body, its border repeated by less than a voxel a base where its size is no
        multiple of the grid; and (3,) the size of the bases.
    """
    extent = np.asarray(values.shape[1:], dtype=np.int64)
    base = -(-extent // np.asarray(grid))
    spare = base * grid - extent
    if spare.any():
        margins = [(int(n) // 2, int(n) - int(n) // 2) for n in spare]
        values = np.pad(values, [(0, 0), *margins], mode="edge")
    return values, base


def place_slab(
    rng: np.random.Generator,
    anchor: Integers,
    body: Box,
    grid: Sequence[int],
    base_size: Sequence[int],
    shrink: bool,
) -> tuple[Integers, Integers]:
    """Choose the position of a slab of grid * base voxels in a volume.

    It contains the anchor. Its position is uniform: inside the body's box on axes where the body is longer, around the
    whole box on others.

    Args:
        rng: source of the draw.
        anchor: (3,) voxel of the body.
        body: bounding box of the body.
        grid: bases along each axis.
        base_size: size of a base in voxels.
        shrink: on axes where the slab is longer than the body, take the smallest bases that cover the body.

    Returns:
        (3,) first voxel of the slab, possibly outside of the volume, and (3,) the size of the bases.
    """
    extent = body.stop - body.start
    base = np.asarray(base_size, dtype=np.int64)
    if shrink:
        base = np.minimum(base, -(-extent // np.asarray(grid)))
    return body.start + random_crop_start(rng, anchor - body.start, base * grid, extent), base


def base_starts(grid: Sequence[int], base: Sequence[int] | Integers) -> Integers:
    """First voxels (n, 3) of the bases that tile the slab; n is the product of the grid."""
    cells = np.stack(np.unravel_index(np.arange(np.prod(grid)), tuple(grid)), axis=1)
    return (cells * np.asarray(base)).astype(np.int64)


def random_crop_starts(
    rng: np.random.Generator, count: int, grid: Sequence[int], base: Sequence[int] | Integers
) -> Integers:
    """First voxels (count, 3) of crops of the bases' size, uniform over all positions in the slab.

    Both ends are included; the authors' code never draws the last one (methods.md 2.1).
    """
    room = (np.asarray(grid) - 1) * np.asarray(base)
    return rng.integers(0, room, size=(count, len(room)), endpoint=True)


def overlap_labels(crops: Integers, bases: Integers, base: Sequence[int] | Integers) -> NDArray[np.float64]:
    """Labels y (M, n): the share of each crop's volume in each base (paper, section 3.2).

    If the bases tile the slab, the row of a crop in it sums to 1 and has at most 2^3 entries other than 0.

    Args:
        crops: (M, 3) first voxels of the crops.
        bases: (n, 3) first voxels of the bases.
        base: (3,) size of crops and bases.
    """
    distance = np.abs(crops[:, None] - bases)
    shared = np.maximum(np.asarray(base) - distance, 0).prod(-1)
    return shared / np.prod(np.asarray(base, dtype=np.int64))


def sample_shifts(
    rng: np.random.Generator, views: int, volume: Volume, probability: float, most_hu: float
) -> NDArray[np.float32]:
    """Draw the shifts of the values of each view and channel, (views, C) float32; one draw for all channels."""
    shifted = rng.random(views) < probability
    fraction = np.where(shifted, rng.uniform(-1, 1, views), 0.0)
    largest = np.where(volume.is_ct, most_hu, most_hu / _WINDOW_CT * _RANGE_OTHERS)
    amplitude = largest / volume.hu_affine[:, 1]
    return (fraction[:, None] * amplitude).astype(np.float32)


def sample_orientations(
    rng: np.random.Generator, crops: int, flip_probability: float, turn_probability: float
) -> dict[str, NDArray[Any]]:
    """Draw flips and quarter turns, independently for each crop.

    Args:
        rng: source of the draws.
        crops: number of crops K.
        flip_probability: of each axis.
        turn_probability: of one to three quarter turns in the plane, equally likely.

    Returns:
        "flips" (K, 3) bool and "turns" (K,) int64 in 0..3.
    """
    flips = rng.random((crops, 3)) < flip_probability
    turned = rng.random(crops) < turn_probability
    return {"flips": flips, "turns": np.where(turned, rng.integers(1, 4, crops), 0)}


@torch.no_grad()
def resized_crops(
    volumes: Tensor,
    starts: Tensor,
    sizes: Tensor,
    patch: tuple[int, int, int],
    flips: Tensor,
    turns: Tensor,
    align_corners: bool = True,
) -> Tensor:
    """Cut boxes out of volumes, resize each to the patch, flip it and turn it.

    Crops are resized as by torch.nn.functional.interpolate (trilinear), which reads no voxel outside of the box, then
    flipped, then turned as by numpy.rot90 over the axes (Y, X).

    Args:
        volumes: (B, C, Z, Y, X) floating.
        starts: (B, K, 3) integers, first voxels of the boxes, inside the volume.
        sizes: (B, 3) integers, size of the boxes of each volume.
        patch: (Z, Y, X) size of the results.
        flips: (B, K, 3) bool.
        turns: (B, K) integers in 0..3; only 0 and 2 if the patch is not square in the plane.
        align_corners: as of interpolate; the authors align them (methods.md 2.1).

    Returns:
        (B, K, C, *patch), of the volumes' type.
    """
    batch, crops = starts.shape[:2]
    z, y, x = (
        _positions(volumes, starts[:, :, axis], sizes[:, axis], patch[axis], flips[:, :, axis], axis, align_corners)
        for axis in range(3)
    )
    depth, height, width = patch
    half = (turns >= 2)[:, :, None]
    y, x = torch.where(half, y.flip(-1), y), torch.where(half, x.flip(-1), x)
    rows, columns = y[:, :, :, None], x[:, :, None, :]  # (B, K, Y, 1) and (B, K, 1, X)
    if height == width:
        # A quarter turn more: result[i, j] = crop[j, last - i].
        odd = (turns % 2 == 1)[:, :, None, None]
        rows, columns = (
            torch.where(odd, y[:, :, None, :], rows),
            torch.where(odd, x.flip(-1)[:, :, :, None], columns),
        )
    shape = (batch, crops, depth, height, width)
    grid = torch.stack([axis.expand(shape) for axis in (columns[:, :, None], rows[:, :, None], z[..., None, None])], -1)
    grid = grid.view(batch, crops * depth, height, width, 3)
    sampled = F.grid_sample(volumes, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled.view(batch, -1, crops, depth, height, width).transpose(1, 2)


def _positions(
    volumes: Tensor, starts: Tensor, sizes: Tensor, length: int, flips: Tensor, axis: int, align_corners: bool
) -> Tensor:
    """Positions of the results' voxels along one axis: (B, K, length), from -1 to 1 over the whole volume."""
    steps = torch.arange(length, device=volumes.device, dtype=volumes.dtype)
    last = (sizes - 1).to(volumes.dtype)[:, None]
    if align_corners:
        inside = steps * (last / max(length - 1, 1))
    else:
        inside = torch.minimum(((steps + 0.5) * ((last + 1) / length) - 0.5).clamp(min=0), last)
    voxels = starts[:, :, None] + torch.where(flips[:, :, None], inside.flip(-1)[:, None], inside[:, None])
    return (2 * voxels + 1) / volumes.shape[2 + axis] - 1
