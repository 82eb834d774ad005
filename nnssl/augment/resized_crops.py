"""Crops of a volume, resized (and flipped and turned) in one trilinear sampling, batched on any device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def sample_orientations(
    rng: np.random.Generator, crops: int, flip_probability: float, turn_probability: float
) -> dict[str, NDArray[Any]]:
    """Draw flips and quarter turns, independently for each crop.

    Args:
        rng: source of the draws.
        crops: number of crops K.
        flip_probability: of each axis.
        turn_probability: of one to three quarter turns, equally likely, in the plane.

    Returns:
        "flips" (K, 3) bool and "turns" (K,) int64 in 0..3.
    """
    flips = rng.random((crops, 3)) < flip_probability
    turned = rng.random(crops) < turn_probability
    return {"flips": flips, "turns": np.where(turned, rng.integers(1, 4, crops), 0)}


@torch.no_grad()
def resized_crops(
    volumes: Tensor, starts: Tensor, sizes: Tensor, patch: tuple[int, int, int], flips: Tensor, turns: Tensor
) -> Tensor:
    """Cut boxes out of volumes, resize each to the patch, flip it and turn it.

    A crop is resized as torch.nn.functional.interpolate does (trilinear, align_corners=False): no voxel outside of the
    box is looked at. It is then flipped, and turned as numpy.rot90 does over the axes (Y, X).

    Args:
        volumes: (B, C, Z, Y, X) floating.
        starts: (B, K, 3) integers, first voxels of the boxes, inside the volume.
        sizes: (B, 3) integers, size of the boxes of each volume.
        patch: (Z, Y, X) size of the results.
        flips: (B, K, 3) bool.
        turns: (B, K) integers in 0..3; a patch that is not square in the plane can take 0 and 2 only.

    Returns:
        (B, K, C, *patch), of the volumes' type.
    """
    batch, crops = starts.shape[:2]
    z, y, x = (
        _positions(volumes, starts[:, :, axis], sizes[:, axis], patch[axis], flips[:, :, axis], axis)
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
    sampled = _sampled(volumes, grid.view(batch, crops * depth, height, width, 3))
    return sampled.view(batch, -1, crops, depth, height, width).transpose(1, 2)


@torch.no_grad()
def scaled_crops(regions: Tensor, scales: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Sample patches from regions that begin one voxel before their crops (methods.md 5.1).

    Voxel i of a patch lies at 1 + (i + 0.5) * scale - 0.5 of its region: unlike in `resized_crops`, scales need no box
    of whole voxels, and what lies around the crop is looked at.

    Args:
        regions: (N, C, Z, Y, X) floating, as large as `nnssl.methods.overlapping_crops.region_size` or larger.
        scales: (N,) voxels of the region for one of the patch.
        patch: (Z, Y, X) size of the results.

    Returns:
        (N, C, *patch), of the regions' type.
    """
    axes = []
    for size, length in zip(regions.shape[2:], patch, strict=True):
        steps = torch.arange(length, device=regions.device, dtype=regions.dtype) + 0.5
        voxels = 0.5 + steps * scales.to(regions.dtype)[:, None]
        axes.append((2 * voxels + 1) / size - 1)
    z, y, x = axes
    shape = (len(regions), *patch)
    lines = (x[:, None, None, :], y[:, None, :, None], z[:, :, None, None])
    return _sampled(regions, torch.stack([line.expand(shape) for line in lines], -1))


def _sampled(volumes: Tensor, grid: Tensor) -> Tensor:
    """Trilinear reading of (B, C, Z, Y, X) at (B, z, y, x, 3) places [x, y, z] from -1 to 1 over the whole volume."""
    return F.grid_sample(volumes, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _positions(volumes: Tensor, starts: Tensor, sizes: Tensor, length: int, flips: Tensor, axis: int) -> Tensor:
    """Where the voxels of the results lie along one axis: (B, K, length), from -1 to 1 over the whole volume."""
    steps = torch.arange(length, device=volumes.device, dtype=volumes.dtype) + 0.5
    inside = steps * (sizes.to(volumes.dtype) / length)[:, None] - 0.5
    inside = torch.minimum(inside.clamp(min=0), (sizes - 1).to(volumes.dtype)[:, None])
    voxels = starts[:, :, None] + torch.where(flips[:, :, None], inside.flip(-1)[:, None], inside[:, None])
    return (2 * voxels + 1) / volumes.shape[2 + axis] - 1
