"""Features of the voxels of a body, tile by tile: their mean, a random sample, or the components of a sample."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from nnssl.core.errors import BadCase
from nnssl.core.geometry import Box
from nnssl.data.raw import RawCase
from nnssl.features.components import Moments, Projection
from nnssl.features.images import PreparedImage, prepare_raw_case
from nnssl.features.model import PretrainedModel
from nnssl.features.tiles import Slices, Tiling, run_tile, tile_for
from nnssl.networks.pyramid import Stride, gather_voxels

VOXELS = 50_000  # of all images together, for a fit
TILES = 256  # of all images together, that hold these voxels; at least one of each image
ALL_AIR = "all air: no body voxel on the grid of the plans"

log = logging.getLogger("nnssl")


def prepare_with_body(case: RawCase, model: PretrainedModel, left_out: dict[str, str]) -> PreparedImage | None:
    """The preprocessed image and its body, see `prepare_raw_case`; an image that cannot be used is a warning.

    Args:
        case: with its files.
        model: whose plans prepare it.
        left_out: gets the reason by the case's name where there is one.

    Returns:
        The image, whose `body` has voxels; None where it is left out.
    """
    try:
        image = prepare_raw_case(case, model, with_body=True)
        if image.body is None or not image.body.any():
            raise BadCase(ALL_AIR)
    except BadCase as bad:
        left_out[case.name] = str(bad)
        log.warning(f"{case.name} is left out: {bad}")
        return None
    return image


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
    of_levels = range(len(model.strides)) if level is None else [level]
    rows = []
    for tile, share in zip(chosen, shares, strict=True):
        box, region = tiling.boxes[tile], regions[tile]
        inside = np.argwhere(body[region])[np.sort(rng.choice(counts[tile], share, replace=False))]
        at = inside + [part.start for part in region] - box.start
        levels = run_tile(model, values, box, device)
        points = torch.from_numpy(np.insert(at, 0, 0, axis=1)).to(levels[0].device)
        read = gather_voxels([levels[i][None] for i in of_levels], [model.strides[i] for i in of_levels], points)
        rows.append(read.cpu().numpy())
    return np.concatenate(rows)


def used_voxels(tiling: Tiling, box: Box, stride: Stride) -> Slices:
    """The voxels of the image that the used cells of a tile cover."""
    _, target = tiling.cells(box, stride)
    return tuple(slice(p.start * s, min(p.stop * s, n)) for p, s, n in zip(target, stride, tiling.size, strict=True))


def fit_projection(
    model: PretrainedModel, images: Iterable[PreparedImage], count: int, components: int, level: int | None, device: str
) -> Projection:
    """Fit principal components to the features of random body voxels; one image is in memory at a time.

    Args:
        model: on the device.
        images: with their bodies; the name of each seeds its draw.
        count: of the images, at least.
        components: to fit.
        level: as of `dense_features`.
        device: where the model is.

    Raises:
        UserError: there are fewer voxels than components.
    """
    moments = Moments()
    voxels, tiles = (-(-most // count) for most in (VOXELS, TILES))
    for image in images:
        assert image.body is not None
        rng = np.random.default_rng(zlib.crc32(image.name.encode()))
        moments.add(sample_features(model, image.values, image.body, level, voxels, tiles, rng, device))
    return moments.project(components, level, model.fingerprint)
