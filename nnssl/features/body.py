"""Features of the voxels of a body, tile by tile: their mean, or a random sample."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nnssl.core.errors import BadCase
from nnssl.core.geometry import Box
from nnssl.features.model import PretrainedModel
from nnssl.features.tiles import Slices, Tiling, run_tile, tile_for
from nnssl.networks.pyramid import Stride, gather_voxels

ALL_AIR = "all air: no body voxel on the grid of the plans"


def body_vector(
    model: PretrainedModel,
    values: np.ndarray,
    body: NDArray[np.bool_],
    level: int | None = None,
    device: str = "cpu",
) -> NDArray[np.float32]:
    """Mean of the features of all body voxels (D,), tile by tile: of each level, finest first, or of one.

    A cell counts as often as it has body voxels.

    Args:
        model: on the device.
        values: (C, Z, Y, X) float32, preprocessed.
        body: (Z, Y, X).
        level: number of one level; None for all of them, concatenated.
        device: where the model is.

    Raises:
        BadCase: the body is empty.
    """
    if not body.any():
        raise BadCase(ALL_AIR)
    chosen = range(len(model.strides)) if level is None else [level]
    sums = [torch.zeros(model.channels[i], dtype=torch.float64, device=device) for i in chosen]
    tiling = tile_for(model, values)
    for box in tiling.boxes:
        cells = [tiling.cells(box, model.strides[i]) for i in chosen]
        weights = [_body_voxels(body, target, model.strides[i]) for (_, target), i in zip(cells, chosen, strict=True)]
        if not any(weight.any() for weight in weights):
            continue
        levels = run_tile(model, values, box, device)
        for total, (source, _), weight, i in zip(sums, cells, weights, chosen, strict=True):
            used = (slice(None), *source)
            total += torch.einsum("czyx,zyx->c", levels[i][used], torch.from_numpy(weight).to(levels[i])).double()
    return (torch.cat(sums) / int(body.sum())).float().cpu().numpy()


def _body_voxels(body: NDArray[np.bool_], cells: Slices, stride: Stride) -> NDArray[np.float32]:
    """Number of body voxels in each cell."""
    region = body[tuple(slice(part.start * step, part.stop * step) for part, step in zip(cells, stride, strict=True))]
    if region.size == 0:
        return np.zeros([part.stop - part.start for part in cells], dtype=np.float32)
    inside = torch.from_numpy(region.astype(np.float32))[None, None]
    z, y, x = (-n % step for n, step in zip(region.shape, stride, strict=True))
    counted = F.avg_pool3d(F.pad(inside, (0, x, 0, y, 0, z)), stride) * float(np.prod(stride))
    counts: NDArray[np.float32] = counted.round()[0, 0].numpy()
    return counts


def sample_features(
    model: PretrainedModel,
    values: np.ndarray,
    body: NDArray[np.bool_],
    level: int | None,
    voxels: int,
    tiles: int,
    rng: np.random.Generator,
    device: str = "cpu",
) -> NDArray[np.float32]:
    """Features (n, D) of random body voxels in a few random tiles.

    Args:
        model: on the device.
        values: (C, Z, Y, X) float32, preprocessed.
        body: (Z, Y, X).
        level: as of `dense_features`.
        voxels: n, at most.
        tiles: to compute, at most.
        rng: source of the draw.
        device: where the model is.

    Raises:
        BadCase: the body is empty.
    """
    tiling = tile_for(model, values)
    regions = [used_voxels(tiling, box, model.strides[level or 0]) for box in tiling.boxes]
    counts = np.array([np.count_nonzero(body[region]) for region in regions])
    with_body = np.flatnonzero(counts)
    if not len(with_body):
        raise BadCase(ALL_AIR)
    chosen = np.sort(rng.choice(with_body, min(tiles, len(with_body)), replace=False))
    number = min(voxels, int(counts[chosen].sum()))
    shares = rng.multivariate_hypergeometric(counts[chosen], number, method="marginals")
    rows = []
    for tile, share in zip(chosen, shares, strict=True):
        box, region = tiling.boxes[tile], regions[tile]
        inside = np.argwhere(body[region])[np.sort(rng.choice(counts[tile], share, replace=False))]
        at = inside + [part.start for part in region] - box.start
        rows.append(_read(run_tile(model, values, box, device), model.strides, at, level))
    return np.concatenate(rows)


def used_voxels(tiling: Tiling, box: Box, stride: Stride) -> Slices:
    """The voxels of the image that the used cells of a tile cover."""
    _, target = tiling.cells(box, stride)
    return tuple(slice(p.start * s, min(p.stop * s, n)) for p, s, n in zip(target, stride, tiling.size, strict=True))


def _read(levels: list[Tensor], strides: Sequence[Stride], at: NDArray, level: int | None) -> NDArray[np.float32]:
    """Features (n, D) of voxels (n, 3) of a tile."""
    chosen = range(len(levels)) if level is None else [level]
    voxels = torch.from_numpy(np.insert(at, 0, 0, axis=1)).to(levels[0].device)
    features: NDArray[np.float32] = (
        gather_voxels([levels[i][None] for i in chosen], [strides[i] for i in chosen], voxels).cpu().numpy()
    )
    return features
