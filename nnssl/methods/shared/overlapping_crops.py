"""Two overlapping crops of a volume, each with its own scale, and points inside both (methods.md 5.1).

Along each axis, voxel i of a patch that starts at voxel `start` of the volume and has the scale `scale` is at

    x = start + (i + 0.5) * scale - 0.5

in voxels of the volume. Integers are centres of voxels, and a patch of P voxels covers P * scale voxels of the volume.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nnssl.core.batch_memory import empty
from nnssl.core.geometry import Integers, random_crop_start
from nnssl.methods.base import Batch, Method, Sample, Volume
from nnssl.methods.panel import Panel

_PAIRS, _POINTS = 4, 8  # shown in `views.png`, at most
_APART = 0.12  # of the crop, between two of the points


def read_crops(volume: Volume, starts: Integers, patch: Sequence[int] | Integers) -> NDArray[np.float32]:
    """Read the crops (K, C, *P) at first voxels (K, 3) with one read of the box around all of them."""
    origin = starts.min(0)
    region = volume.read(origin, starts.max(0) + patch)
    boxes = [(slice(None), *map(slice, start, start + patch)) for start in starts - origin]
    return np.stack([region[box] for box in boxes])


def read_region(volume: Volume, starts: Integers, patch: Sequence[int] | Integers) -> Sample:
    """Read crops (K, C, *P) at first voxels (K, 3) as one array, which `cut_crops` cuts on the device.

    Returns:
        "region" (C, Z, Y, X), the box around all crops, or the crops one below the other where that is smaller, and
        "corners" (K, 3), first voxels of the crops in it.
    """
    origin, patch = starts.min(0), np.asarray(patch)
    region, corners = volume.read(origin, starts.max(0) + patch), starts - origin
    if np.prod(region.shape[1:]) > len(starts) * patch.prod():
        crops = [region[:, z : z + patch[0], y : y + patch[1], x : x + patch[2]] for z, y, x in corners]
        region, corners = np.concatenate(crops, axis=1), np.outer(np.arange(len(starts)), patch * (1, 0, 0))
    return {"region": region, "corners": corners}


def collate_regions(samples: list[Sample]) -> Batch:
    """The regions of a batch one after the other as "region" (n,), with their shapes as "region_sizes" (B, 4)."""
    regions = [s["region"] for s in samples]
    flat = empty((sum(r.size for r in regions),), torch.from_numpy(regions[0][:0]).dtype)
    np.concatenate([r.ravel() for r in regions], out=flat.numpy())
    return {"region": flat, "region_sizes": torch.tensor([r.shape for r in regions])}


def cut_crops(batch: Batch, patch: tuple[int, int, int]) -> Tensor:
    """Cut the crops (B, K, C, *P) of a batch out of its regions, on their device.

    Args:
        batch: with "region" and "region_sizes" of `collate_regions` and "corners" (B, K, 3), the last two on the CPU.
        patch: (Z, Y, X) size of the crops.
    """
    sizes, (depth, height, width) = batch["region_sizes"].tolist(), patch
    crops = []
    for flat, size, corners in zip(batch["region"].split([prod(s) for s in sizes]), sizes, batch["corners"].tolist(),
                                   strict=True):  # fmt: skip
        region = flat.view(size)
        crops += [region[:, z : z + depth, y : y + height, x : x + width] for z, y, x in corners]
    return torch.stack(crops).unflatten(0, (len(sizes), -1))


def boxes_of_crops(starts: Tensor, patch: Sequence[int], scales: Tensor | None = None) -> Tensor:
    """First voxel and end (..., 2, 3) of crops that start at (..., 3) and cover the patch, times the scales (...)."""
    first = starts.double()
    extent = first.new_tensor(patch).expand_as(first)
    return torch.stack([first, first + (extent if scales is None else extent * scales.to(first)[..., None])], dim=-2)


def collate_matched(samples: list[Sample], points: str, places: str) -> Batch:
    """Stack samples, but concatenate `points` (M, 2, 3), as (N, 2, 4) with the sample's number first, and `places`.

    `counts` (B,) are the numbers of points of the samples.
    """
    batch = Method.collate([{k: v for k, v in s.items() if k not in (points, places)} for s in samples])
    numbered = [np.insert(s[points], 0, i, axis=2) for i, s in enumerate(samples)]
    batch[points] = torch.from_numpy(np.concatenate(numbered))
    batch[places] = torch.from_numpy(np.concatenate([s[places] for s in samples]))
    batch["counts"] = torch.tensor([len(s[points]) for s in samples])
    return batch


def matched_view_panels(crops: np.ndarray, points: np.ndarray) -> list[list[Panel]]:
    """Both crops of up to four pairs, in the slices that share most points, with eight of the points marked.

    Args:
        crops: (B, 2, C, Z, Y, X).
        points: (N, 2, 4) [pair, z, y, x] in the first and in the second crop; points that share a slice of the first
            share a slice of the second.
    """
    rows = []
    for i in range(min(_PAIRS, len(crops))):
        mine = points[points[:, 0, 0] == i, :, 1:]  # (M, 2, 3)
        shown = mine
        if len(mine):
            slices, counts = np.unique(mine[:, 0, 0], return_counts=True)
            shown = _apart(mine[mine[:, 0, 0] == slices[counts.argmax()]], np.asarray(crops.shape[-2:]))
        rows.append([_view_panel(crops[i, k, 0], shown[:, k], i, k) for k in range(2)])
    return rows


def _apart(points: np.ndarray, size: Integers) -> np.ndarray:
    """Up to eight points (K, 2, 3) far from each other, so that their numbers are readable.

    The next one is always the farthest from those before.
    """
    places, chosen = points[:, 0, 1:], [0]
    away = np.full(len(points), np.inf)
    while len(chosen) < _POINTS:
        away = np.minimum(away, np.linalg.norm((places - places[chosen[-1]]) / size, axis=1))
        if away.max() < _APART:
            break
        chosen.append(int(away.argmax()))
    return points[chosen]


def _view_panel(crop: np.ndarray, points: np.ndarray, i: int, k: int) -> Panel:
    """The slice of view k (Z, Y, X) of pair i with the points (K, 3); the middle one if there are none."""
    z = round(float(points[0, 0])) if len(points) else len(crop) // 2
    marks: Sequence[tuple[int, float, float]] = [(n + 1, float(y), float(x)) for n, (_, y, x) in enumerate(points)]
    title = f"pair {i + 1}, view {k + 1}, slice {z + 1} of {len(crop)}"
    return Panel(crop[z], title, marks, crop=(i, k, (z + 0.5) / len(crop)))


Floats = NDArray[np.float64]
Array = TypeVar("Array", NDArray[Any], Tensor)


def to_source(index: Array, start: Array, scale: Array) -> Array:
    """Map positions in a patch to positions in the volume; shapes broadcast."""
    return start + (index + 0.5) * scale - 0.5


def to_patch(source: Array, start: Array, scale: Array) -> Array:
    """Map positions in the volume to positions in a patch: the inverse of `to_source`."""
    return (source - start + 0.5) / scale - 0.5


def overlap_fraction(starts: NDArray[Any], scales: NDArray[Any], patch: Sequence[int] | Integers) -> Floats:
    """Return the intersection of two crops as a fraction of the larger one.

    Args:
        starts: (..., 2, 3) first voxels of both crops.
        scales: (..., 2); a crop covers patch * scale voxels.
        patch: (3,) size of the patches in voxels.

    Returns:
        (...) in [0, 1]; for equal scales the product of 1 - |shift| / size over the axes.
    """
    sides = np.asarray(scales, dtype=np.float64)[..., None] * np.asarray(patch)
    begin = np.asarray(starts, dtype=np.float64)
    shared = (begin + sides).min(-2) - begin.max(-2)
    fraction: Floats = np.maximum(shared, 0).prod(-1) / sides.prod(-1).max(-1)
    return fraction


def sample_pair(
    rng: np.random.Generator,
    anchor: Sequence[int] | Integers,
    size: Sequence[int] | Integers,
    patch: Sequence[int] | Integers,
    scale_range: float,
    least_overlap: float,
    draws: int = 64,
) -> tuple[Integers, Floats]:
    """Draw two crops of a volume that overlap enough.

    The first contains the anchor. The second is uniform over all positions with an `overlap_fraction` of at least
    `least_overlap`. Both are inside the volume, or cover it whole on axes where it is smaller.

    Args:
        rng: Source of the draws.
        anchor: (3,) voxel of the volume.
        size: (3,) size of the volume in voxels.
        patch: (3,) size of the patches in voxels.
        scale_range: r: each crop's scale is uniform between 1 - r and 1 + r, the same on all axes.
        least_overlap: At most `most_overlap(scale_range)`, which is always possible.
        draws: Attempts to draw the second crop; if all fail, it is the nearest possible one. With an overlap of 1/8
            about every third succeeds, so that 64 fail once in 10^11 times; with 1/2 every thirtieth.

    Returns:
        (2, 3) first voxels, and (2,) scales, exact in float32.
    """
    scales = rng.uniform(1 - scale_range, 1 + scale_range, 2).astype(np.float32).astype(np.float64)
    extents = np.ceil(scales[:, None] * np.asarray(patch)).astype(np.int64)
    first = random_crop_start(rng, anchor, extents[0], size)
    room = np.asarray(size, dtype=np.int64) - extents[1]
    lowest, highest = np.minimum(room, 0), np.maximum(room, 0)
    nearest = np.clip(first, lowest, highest)  # the largest possible overlap
    begin, end = np.maximum(lowest, first - extents[1]), np.minimum(highest, first + extents[0])
    drawn = rng.integers(begin, end, (draws, 3), endpoint=True)
    pairs = np.stack(np.broadcast_arrays(first, np.concatenate([drawn, nearest[None]])), axis=1)
    enough = overlap_fraction(pairs, np.broadcast_to(scales, pairs.shape[:2]), patch) >= least_overlap
    return pairs[np.argmax(enough) if enough.any() else -1], scales


def most_overlap(scale_range: float) -> float:
    """The largest overlap that is possible for any two scales: the smallest crop inside the largest."""
    return float(((1 - scale_range) / (1 + scale_range)) ** 3)


def region_size(patch: Sequence[int] | Integers, scale: float) -> Integers:
    """Voxels (3,) of the volume that trilinear sampling of a crop may read, from one before its start."""
    return np.floor((np.asarray(patch) - 0.5) * scale - 0.5).astype(np.int64) + 3


@torch.no_grad()
def scaled_crops(regions: Tensor, scales: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Sample patches from regions that begin one voxel before their crops (methods.md 5.1).

    Voxel i of a patch is at 1 + (i + 0.5) * scale - 0.5 of its region: crops need not cover whole voxels, and the
    interpolation reads voxels around them.

    Args:
        regions: (N, C, Z, Y, X) floating, of `region_size` or larger.
        scales: (N,) voxels of the region per voxel of the patch.
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
    grid = torch.stack([line.expand(shape) for line in lines], -1)
    return F.grid_sample(regions, grid, mode="bilinear", padding_mode="border", align_corners=False)


def sample_points(
    rng: np.random.Generator,
    body: Callable[[Integers, Integers], NDArray[np.bool_]],
    size: Integers,
    patch: Sequence[int],
    starts: Integers,
    scales: Floats,
    most: int,
) -> tuple[Floats, Floats]:
    """Draw points inside both crops: voxels of the first patch whose nearest voxel of the volume is body.

    Args:
        rng: Source of the draws.
        body: `read_body(start, stop)` of the volume: bool mask of a box.
        size: (3,) size of the volume in voxels; points are never in the padding.
        patch: (3,) size of the patches.
        starts: (2, 3) first voxels of the crops.
        scales: (2,) of the crops.
        most: Number of points to draw without repetition; fewer if there are fewer.

    Returns:
        (M, 2, 3) positions in both patches, integers in the first and in 0..patch-1 in the second, and (M, 3) positions
        in the volume, in voxels. M may be 0.
    """
    indices, sources = [], []
    for axis in range(3):
        index = np.arange(patch[axis])
        source = to_source(index, starts[0, axis], scales[0])
        other = to_patch(source, starts[1, axis], scales[1])
        usable = (other >= 0) & (other <= patch[axis] - 1) & (np.rint(source) >= 0) & (np.rint(source) < size[axis])
        indices.append(index[usable])
        sources.append(source[usable])
    if min(map(len, indices)) == 0:
        return np.zeros((0, 2, 3)), np.zeros((0, 3))
    nearest = [np.rint(source).astype(np.int64) for source in sources]
    begin = np.array([line[0] for line in nearest])
    mask = body(begin, np.array([line[-1] + 1 for line in nearest]))
    candidates = np.flatnonzero(mask[np.ix_(*(line - line[0] for line in nearest))])
    if len(candidates) > most:
        candidates = rng.choice(candidates, most, replace=False, shuffle=False)
    chosen = np.unravel_index(candidates, [len(line) for line in indices])
    first = np.stack([line[c] for line, c in zip(indices, chosen, strict=True)], axis=1)
    source = np.stack([line[c] for line, c in zip(sources, chosen, strict=True)], axis=1)
    return np.stack([first, to_patch(source, starts[1], scales[1])], axis=1), source
