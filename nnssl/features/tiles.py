"""Features of whole images, tile by tile: named maps for matching and figures, or one dense map."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.core.geometry import Box, sliding_window_boxes
from nnssl.networks.pyramid import Stride

if TYPE_CHECKING:
    from nnssl.features.components import Projection
    from nnssl.features.model import PretrainedModel
    from nnssl.networks.encodings import PixelEncoder

OVERLAP = 0.5  # of neighbouring tiles, nnU-Net's: a quarter of a tile on each inner side is not used
LARGEST = float(np.finfo(np.float16).max)  # maps are kept in float16

Slices = tuple[slice, ...]


@dataclass(frozen=True)
class Tiling:
    """Overlapping tiles of an image. They begin at multiples of the network's strides: their cells are the image's.

    Where a tile has neighbours, half of the overlap is cut off.

    Args:
        size: (Z, Y, X) voxels of the image.
        padded: voxels with the zeros at the end of the image: at least a tile, and a multiple of the strides.
        extent: voxels of a tile.
        shared: least overlap of neighbours, in voxels.
        boxes: the tiles, last axis fastest.
    """

    size: Stride
    padded: list[int]
    extent: list[int]
    shared: list[int]
    boxes: list[Box]

    def cells(self, box: Box, stride: Stride) -> tuple[Slices, Slices]:
        """The used part of a tile's map, as slices (Z, Y, X) in the map of the tile and in that of the image.

        Every cell of the image comes from exactly one tile.
        """
        source, target = [], []
        for axis, step in enumerate(stride):
            border = self.shared[axis] // 2 // step  # cells
            start, last = int(box.start[axis]) // step, -(-self.size[axis] // step)
            first = min(start + border if start > 0 else 0, last)
            furthest = self.padded[axis] - self.extent[axis]  # where the last tile of the axis begins
            later = min(int(box.start[axis]) + self.extent[axis] - self.shared[axis], furthest)
            stop = last if box.start[axis] == furthest else min(later // step + border, last)
            source.append(slice(first - start, stop - start))
            target.append(slice(first, stop))
        return tuple(source), tuple(target)


def tile_image(size: Sequence[int], tile: Sequence[int], strides: Sequence[Stride], overlap: float = OVERLAP) -> Tiling:
    """Lay tiles over an image.

    Args:
        size: (Z, Y, X) voxels of the image.
        tile: (Z, Y, X) voxels, such as the patch of a pretraining; rounded up to multiples of the strides.
        strides: of all maps, and the network's divisor.
        overlap: least overlap of neighbouring tiles, as a part of a tile; below 1.
    """
    steps = [math.lcm(*(int(stride[axis]) for stride in strides)) for axis in range(3)]
    extent = [-(-t // s) * s for t, s in zip(tile, steps, strict=True)]
    padded = [max(-(-n // s) * s, e) for n, s, e in zip(size, steps, extent, strict=True)]
    shared = [min(math.ceil(overlap * e / s) * s, e - s) for e, s in zip(extent, steps, strict=True)]
    boxes = sliding_window_boxes(padded, extent, shared)
    return Tiling(cast(Stride, tuple(size)), padded, extent, shared, boxes)


def read_tile(values: np.ndarray, box: Box) -> Tensor:
    """A box of an image (C, Z, Y, X) as (1, C, Z, Y, X), zero behind the end of the image."""
    stop = np.minimum(box.stop, values.shape[1:])
    place = (slice(None), *map(slice, box.start, stop))
    inside = torch.from_numpy(values[place])
    z, y, x = (int(n) for n in box.stop - stop)
    return F.pad(inside[None], (0, x, 0, y, 0, z))


class LevelEncoder(nn.Module):
    """Levels of a pretrained backbone as named maps, like those of a pixel encoder.

    The finest one is called "fine", others "level 1" and so on.

    Args:
        model: with the backbone.
        levels: which of its levels, ascending.
    """

    def __init__(self, model: PretrainedModel, levels: Sequence[int]) -> None:
        super().__init__()
        self.backbone = model.backbone
        named = dict(zip(["fine", *(f"level {level}" for level in levels[1:])], levels, strict=True))
        self.levels = {name: self.backbone.finest + level for name, level in named.items()}
        self.input_channels = model.input_channels
        self.strides = {name: model.strides[level] for name, level in named.items()}
        self.dims = {name: model.channels[level] for name, level in named.items()}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Map a tile (B, C, Z, Y, X), whose sides the network divides, to (B, d, Z_l, Y_l, X_l) by name."""
        pyramid = self.backbone(x)
        return {name: pyramid[level].float().clamp(-LARGEST, LARGEST) for name, level in self.levels.items()}


@dataclass(frozen=True)
class EncodedImage:
    """Named maps of an image; plain tensors, so that they can be kept for many matches.

    Args:
        maps: by name, such as "fine" and "coarse": (d, ceil(Z / s_z), ...) float16 on the CPU.
        strides: voxels (z, y, x) a cell, by name.
        size: (Z, Y, X) voxels of the image.
        lengths: of the other maps' vectors at the fine cells, by name (`nnssl.features.match.interpolated_lengths`);
            every search computes the missing ones.
    """

    maps: dict[str, Tensor]
    strides: dict[str, Stride]
    size: tuple[int, int, int]
    lengths: dict[str, Tensor] = field(default_factory=dict)


@torch.no_grad()
def encode_image(
    encoder: PixelEncoder | LevelEncoder,
    values: np.ndarray,
    tile: Sequence[int],
    device: torch.device | str = "cpu",
    overlap: float = OVERLAP,
    blend: bool = False,
) -> EncodedImage:
    """Encode an image of any size; the device holds one tile and its maps at a time.

    A cell is taken from the tile in which it is farthest from the inner borders. Blended, it is the mean of all tiles
    that hold it, weighted by nnU-Net's Gaussian around the middle of a tile: networks that see their whole input, such
    as those with instance normalisation, otherwise leave seams.

    Args:
        encoder: frozen; it is moved to the device.
        values: (C, Z, Y, X) float32, normalised as in the pretraining.
        tile: (Z, Y, X) voxels, such as the patch of the pretraining; rounded up to multiples of the strides.
        device: where to compute.
        overlap: least overlap of neighbouring tiles, as a part of a tile; below 1.
        blend: mean over tiles instead of one tile for each cell.
    """
    tiling = tile_image(values.shape[1:], tile, [*encoder.strides.values(), encoder.backbone.divisor], overlap)
    maps = {
        name: torch.zeros([encoder.dims[name], *_cells_of(tiling.size, stride)], dtype=torch.float16)
        for name, stride in encoder.strides.items()
    }
    encoder.to(device)
    sums = {name: torch.zeros(part.shape[1:]) for name, part in maps.items()}  # of the weights so far
    for box in tiling.boxes:
        encoded = encoder(read_tile(values, box).to(device))
        for name, stride in encoder.strides.items():
            if blend:
                _blend(encoded[name][0].cpu(), maps[name], sums[name], box, stride)
                continue
            source, target = ((slice(None), *cells) for cells in tiling.cells(box, stride))
            maps[name][target] = encoded[name][0][source].to(maps[name])
    return EncodedImage(maps, dict(encoder.strides), tiling.size)


def _blend(tile: Tensor, whole: Tensor, sums: Tensor, box: Box, stride: Stride) -> None:
    """Bring a tile's map (d, Z, Y, X) into the weighted mean of an image's, and its weights into their sum."""
    first = [int(n) // s for n, s in zip(box.start, stride, strict=True)]
    target = tuple(slice(f, f + n) for f, n in zip(first, tile.shape[1:], strict=True))
    z, y, x = sums[target].shape  # cells behind the end of the image are cut off
    weights = _weights(tuple(box.stop - box.start), stride)[:z, :y, :x]
    sums[target] += weights
    place = (slice(None), *target)
    mean = whole[place].float()
    whole[place] = (mean + weights / sums[target] * (tile[:, :z, :y, :x].float() - mean)).to(whole)


@lru_cache(maxsize=8)
def _weights(extent: tuple[int, ...], stride: Stride) -> Tensor:
    """nnU-Net's weights of a tile's voxels, averaged over the cells (Z, Y, X) of a map."""
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian

    gaussian = compute_gaussian(extent, dtype=torch.float32, device=torch.device("cpu"))
    return F.avg_pool3d(gaussian[None, None], stride)[0, 0]


def _cells_of(size: Sequence[int], stride: Stride) -> Stride:
    z, y, x = (-(-n // s) for n, s in zip(size, stride, strict=True))
    return z, y, x


def tile_for(model: PretrainedModel, values: np.ndarray) -> Tiling:
    """Tiles of the pretraining's patch size over a preprocessed image (C, Z, Y, X).

    Raises:
        UserError: the image has other channels than the network reads.
    """
    tiling = tile_image(values.shape[1:], model.patch_size, [*model.strides, model.divisor])
    model.check_input(len(values), tiling.extent)
    return tiling


@torch.no_grad()
def run_tile(model: PretrainedModel, values: np.ndarray, box: Box, device: str) -> list[Tensor]:
    """Levels (C_l, Z_l, Y_l, X_l) of one tile of `tile_for`, finest first, float32 on the device."""
    levels = model.backbone(read_tile(values, box).to(device))[model.backbone.finest :]
    return [level[0].float() for level in levels]


def dense_shape(
    model: PretrainedModel, size: Sequence[int], level: int | None, projection: Projection | None = None
) -> tuple[int, int, int, int]:
    """Shape (d, Z', Y', X') of what `dense_features` makes of an image of (Z, Y, X) voxels."""
    channels = sum(model.channels) if level is None else model.channels[level]
    depth = channels if projection is None else len(projection.components)
    return depth, *_cells_of(size, model.strides[level or 0])


def dense_features(
    model: PretrainedModel,
    values: np.ndarray,
    level: int | None = None,
    device: str = "cpu",
    projection: Projection | None = None,
    out: Any = None,
) -> Any:
    """Features of an image of any size; the device holds one tile and its maps at a time.

    Tiles have the patch size of the pretraining and overlap by half. A cell takes all levels from the tile in which it
    is far from the inner borders; what it sees farther away than a quarter of a tile depends on the tile.

    Args:
        model: from `nnssl.load_pretrained`, on the device.
        values: (C, Z, Y, X) float32, normalised by the plans, as `model.prepare` gives them.
        level: number of one level, 0 the finest; None for all of them, at the cells of the finest one.
        device: where the model is.
        projection: to fewer components.
        out: array for the result, of the shape of `dense_shape`, such as a memory-mapped or a blosc2 one; None for a
            new one.

    Returns:
        `out`: (d, ceil(Z / s_z), ceil(Y / s_y), ceil(X / s_x)) float16 for the stride s of the level.
    """
    if out is None:
        out = np.zeros(dense_shape(model, values.shape[1:], level, projection), dtype=np.float16)
    chosen = range(len(model.strides)) if level is None else [level]
    strides = [model.strides[i] for i in chosen]
    tiling = tile_for(model, values)
    for box in tiling.boxes:
        source, target = tiling.cells(box, strides[0])
        if any(part.start == part.stop for part in target):
            continue
        computed = run_tile(model, values, box, device)
        levels = [computed[i] for i in chosen]
        if projection is not None:  # before they are spread over finer cells: there are fewer
            parts = projection.apart([len(part) for part in levels], device)
            levels = [torch.einsum("kc,czyx->kzyx", *pair) for pair in zip(parts, levels, strict=True)]
        blocks: Iterable[Tensor] = (
            at_cells(part, stride, strides[0], source) for part, stride in zip(levels, strides, strict=True)
        )
        if projection is not None:
            blocks = [sum(blocks, projection.offset.to(device).view(-1, 1, 1, 1))]
        first = 0
        for block in blocks:
            place = (slice(first, first + len(block)), *target)
            out[place] = block.clamp(-LARGEST, LARGEST).to(torch.float16).cpu().numpy()
            first += len(block)
    return out


def at_cells(level: Tensor, stride: Stride, finest: Stride, cells: Slices) -> Tensor:
    """A map (C, Z_l, Y_l, X_l) read at cells of a finer one of the same tile; each takes the cell that holds it."""
    for axis, (part, step, fine) in enumerate(zip(cells, stride, finest, strict=True), start=1):
        places = torch.arange(part.start, part.stop, device=level.device) * fine // step
        level = level.index_select(axis, places)
    return level
