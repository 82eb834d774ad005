"""The cells of two overlapping crops that SAM compares: pure functions of tensors (methods.md 5.3).

The two views of a volume have maps of the same size. Their cells have consecutive numbers in the order of the maps'
axes, beginning with the first view.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from nnssl.methods.sam.loss import Cells, Pairs
from nnssl.methods.shared.overlapping_crops import to_patch, to_source
from nnssl.networks.pyramid import Stride


class Views(NamedTuple):
    """Geometry of the two crops of a volume.

    Args:
        starts: (2, 3) first voxels in the volume.
        scales: (2,) voxels of the volume per voxel of the patch.
        spacing: (3,) millimetres per voxel of the volume.
        size: (3,) voxels of the volume.
    """

    starts: Tensor
    scales: Tensor
    spacing: Tensor
    size: Tensor


def cells_of_views(maps: Tensor, stride: Stride, views: Views) -> Cells:
    """The cells of both maps (2, d, Z, Y, X) of unit vectors; cells with their centre in the volume are usable."""
    places = cell_positions(maps.shape[2:], stride, views.starts, views.scales, views.spacing.expand(2, 3))
    voxels = places / views.spacing
    inside = ((voxels >= -0.5) & (voxels <= views.size - 0.5)).all(-1)
    vectors = maps.permute(0, 2, 3, 4, 1).reshape(-1, maps.shape[1])
    return Cells(vectors, places.reshape(-1, 3), inside.flatten())


def cell_positions(
    size: Sequence[int], stride: Sequence[int], starts: Tensor, scales: Tensor, spacing: Tensor
) -> Tensor:
    """Positions of the cells of a feature map in their volumes.

    Args:
        size: (Z, Y, X) cells of the map.
        stride: Voxels of the patch per cell.
        starts: (B, 3) first voxel of each patch in its volume.
        scales: (B,) of the patches.
        spacing: (B, 3) millimetres per voxel.

    Returns:
        (B, Z, Y, X, 3) centres of the cells in millimetres, float32.
    """
    axes = []
    for axis, (cells, step) in enumerate(zip(size, stride, strict=True)):
        index = (torch.arange(cells, device=starts.device, dtype=torch.float32) + 0.5) * step - 0.5
        voxels = to_source(index[None], starts[:, axis, None].float(), scales[:, None].float())
        axes.append(voxels * spacing[:, axis, None].float())
    z, y, x = axes
    shape = (len(starts), *size)
    lines = (z[:, :, None, None], y[:, None, :, None], x[:, None, None, :])
    return torch.stack([line.expand(shape) for line in lines], dim=-1)


def fine_pairs(
    points: Tensor, cells: Cells, size: Sequence[int], stride: Stride, views: Views, most: int, within_mm: float,
    generator: torch.Generator | None = None,
) -> Pairs:  # fmt: skip
    """Draw queries among the cells with matched points, and pair them with the nearest cells of the other view.

    Args:
        points: (M, 2, 3) positions in both patches, in voxels. M may be 0.
        cells: of both views.
        size: (Z, Y, X) cells of one map.
        stride: voxels of the patch per cell.
        views: geometry of the crops.
        most: largest number of queries per view.
        within_mm: a positive must be nearer than this.
        generator: source of the draws, on the device of the tensors.
    """
    drawn = []
    for view in range(2):
        axes = zip(points[:, view].unbind(1), stride, strict=True)
        query = _number([((place + 0.5) / step).floor() for place, step in axes], size) + view * prod(size)
        pairs = _with_nearest(query, cells, size, stride, views, 1 - view, within_mm, within_mm)
        drawn.append(_draw(pairs, most, generator))
    return Pairs(*map(torch.cat, zip(*drawn, strict=True)))


def coarse_pairs(
    cells: Cells, size: Sequence[int], stride: Stride, views: Views, most: int, within_mm: float,
    within_slice_mm: float, generator: torch.Generator | None = None,
) -> Pairs:  # fmt: skip
    """Take all cells as queries, at most `most` per view, and pair them with the nearest cells of the other view.

    Args:
        cells: of both views.
        size: (Z, Y, X) cells of one map.
        stride: voxels of the patch per cell.
        views: geometry of the crops.
        most: largest number of queries per view.
        within_mm: a positive must be nearer than this.
        within_slice_mm: and nearer than this along Z.
        generator: source of the draws, on the device of the tensors.
    """
    drawn = []
    for view in range(2):
        query = torch.arange(prod(size), device=cells.places.device) + view * prod(size)
        pairs = _with_nearest(query, cells, size, stride, views, 1 - view, within_slice_mm, within_mm)
        drawn.append(_draw(pairs, most, generator))
    return Pairs(*map(torch.cat, zip(*drawn, strict=True)))


def _with_nearest(
    query: Tensor, cells: Cells, size: Sequence[int], stride: Stride, views: Views, other: int, within_slice_mm: float,
    within_mm: float,
) -> Pairs:  # fmt: skip
    """Pair cells (Q,) with the nearest ones of the other view; valid if these are near enough and usable.

    Rounding finds the nearest cell, because cells form a lattice along the axes.
    """
    places = cells.places[query]
    in_patch = to_patch(places / views.spacing, views.starts[other].to(places.dtype), views.scales[other])
    lattice = [(place + 0.5) / step - 0.5 for place, step in zip(in_patch.unbind(1), stride, strict=True)]
    positive = _number([place.round() for place in lattice], size) + other * prod(size)
    away = cells.places[positive] - places
    near = (away[:, 0].abs() < within_slice_mm) & (away.square().sum(1) < within_mm**2)
    return Pairs(query, positive, near & cells.usable[query] & cells.usable[positive])


def _draw(pairs: Pairs, most: int, generator: torch.Generator | None) -> Pairs:
    """Draw at most `most` of the pairs, valid ones first."""
    if len(pairs.query) <= most:
        return pairs
    keys = torch.rand(len(pairs.query), generator=generator, device=pairs.query.device)
    chosen = keys.masked_fill_(~pairs.valid, -1.0).topk(most).indices
    return Pairs(*(column[chosen] for column in pairs))


def _number(axes: Sequence[Tensor], size: Sequence[int]) -> Tensor:
    """Numbers (n,) of the cells at whole positions (n,) along (Z, Y, X); of the map's nearest for those beyond it."""
    z, y, x = (place.long().clamp(0, cells - 1) for place, cells in zip(axes, size, strict=True))
    _, height, width = size
    return (z * height + y) * width + x
