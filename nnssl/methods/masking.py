"""Random masks of blocks, and volumes as rows of blocks (methods.md 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnssl.geometry import Integers


def hidden_count(blocks: int, ratio: float) -> int:
    """How many of the blocks are hidden: ceil(ratio * blocks), where 0.75 * 4 is 3 whatever the rounding."""
    return ceil(round(ratio * blocks, 6))


def draw_mask(rng: np.random.Generator, grid: Sequence[int], ratio: float) -> NDArray[np.bool_]:
    """Hide blocks, all choices of the exact number being equally likely.

    Args:
        rng: source of the draw.
        grid: blocks along each axis.
        ratio: part that is hidden, from 0 to below 1.

    Returns:
        (*grid) bool, True where hidden; `hidden_count` of them are.
    """
    blocks = prod(grid)
    hidden = np.zeros(blocks, dtype=bool)
    hidden[rng.choice(blocks, hidden_count(blocks, ratio), replace=False, shuffle=False)] = True
    return hidden.reshape(tuple(grid))


def blocks_inside(
    start: Sequence[int] | Integers, size: Sequence[int] | Integers, patch: Sequence[int], block: Sequence[int]
) -> NDArray[np.bool_]:
    """Which blocks of a crop hold voxels of the volume, and not padding alone.

    Args:
        start: (3,) first voxel of the crop, which may be negative.
        size: (3,) voxels of the volume.
        patch: (3,) voxels of the crop.
        block: (3,) voxels of a block.

    Returns:
        (*patch // block) bool.
    """
    lines = []
    for first, whole, extent, step in zip(start, size, patch, block, strict=True):
        begin = first + np.arange(0, extent, step)
        lines.append((begin < whole) & (begin + step > 0))
    z, y, x = lines
    return z[:, None, None] & y[None, :, None] & x[None, None, :]


def to_blocks(volumes: Tensor, block: Sequence[int]) -> Tensor:
    """Cut volumes (B, C, Z, Y, X) into blocks: (B, N, V), the last axis fastest; V = voxels of a block times C."""
    batch, channels, *size = volumes.shape
    split = [n for extent, step in zip(size, block, strict=True) for n in (extent // step, step)]
    cells = volumes.reshape(batch, channels, *split).permute(0, 2, 4, 6, 3, 5, 7, 1)
    return cells.reshape(batch, prod(split[::2]), prod(block) * channels)


def from_blocks(rows: Tensor, block: Sequence[int], size: Sequence[int]) -> Tensor:
    """Put blocks (B, N, V) together to volumes (B, C, *size): the inverse of `to_blocks`."""
    grid = [extent // step for extent, step in zip(size, block, strict=True)]
    cells = rows.reshape(len(rows), *grid, *block, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return cells.reshape(len(rows), -1, *size)


def visible_blocks(hidden: Tensor, ratio: float, layers: int = 1) -> Tensor:
    """Numbers of the blocks that are not hidden, in ascending order.

    Args:
        hidden: (B, *grid) bool, as many True in each as `draw_mask` gives; knowing the number saves a wait for the
            device.
        ratio: part that is hidden.
        layers: how many blocks are hidden or visible together, such as those of a column.

    Returns:
        (B, n) integers.
    """
    flat = hidden.flatten(1)
    units = flat.shape[1] // layers
    order = flat.to(torch.uint8).argsort(dim=1, stable=True)
    return order[:, : layers * (units - hidden_count(units, ratio))]
