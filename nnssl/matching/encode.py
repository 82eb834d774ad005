"""Encodings of whole images, tile by tile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nnssl.geometry import Box, sliding_window_boxes
from nnssl.networks.encodings import PixelEncoder
from nnssl.networks.pyramid import Stride

_OVERLAP = 0.5  # of neighbouring tiles, nnU-Net's: a quarter of a tile on each inner side is not used


@dataclass(frozen=True)
class EncodedImage:
    """Encodings of an image; plain tensors, so that it can be kept for many matches.

    Args:
        maps: by name, such as "fine" and "coarse": (d, ceil(Z / s_z), ...) float16 unit vectors on the CPU.
        strides: voxels (z, y, x) a cell, by name.
        size: (Z, Y, X) voxels of the image.
    """

    maps: dict[str, Tensor]
    strides: dict[str, Stride]
    size: tuple[int, int, int]


@torch.no_grad()
def encode_image(
    encoder: PixelEncoder,
    values: np.ndarray,
    tile: Sequence[int],
    device: torch.device | str = "cpu",
    overlap: float = _OVERLAP,
) -> EncodedImage:
    """Encode an image of any size. At a time the device holds one tile and its maps.

    Tiles overlap, and where they have neighbours half of the overlap is cut off either. They begin at multiples of the
    network's strides, so that their cells are those of the whole image.

    Args:
        encoder: frozen; it is moved to the device.
        values: (C, Z, Y, X) float32, normalised as in its pretraining; padded with zeros to a tile at least.
        tile: (Z, Y, X) voxels, such as the patch of the pretraining; rounded up to what the network divides by.
        device: where to compute.
        overlap: of neighbouring tiles, at least, as a part of a tile; below 1.
    """
    size = cast(tuple[int, int, int], values.shape[1:])
    steps = _alignment(encoder)
    extent = [-(-t // s) * s for t, s in zip(tile, steps, strict=True)]
    padded = [max(-(-n // s) * s, e) for n, s, e in zip(size, steps, extent, strict=True)]
    shared = [min(math.ceil(overlap * e / s) * s, e - s) for e, s in zip(extent, steps, strict=True)]
    maps = {
        name: torch.zeros([encoder.dims[name], *_cells(size, stride)], dtype=torch.float16)
        for name, stride in encoder.strides.items()
    }
    encoder.to(device)
    for box in sliding_window_boxes(padded, extent, shared):
        encoded = encoder(_read(values, box).to(device))
        for name, stride in encoder.strides.items():
            _paste(maps[name], encoded[name][0], box, padded, shared, stride)
    return EncodedImage(maps, dict(encoder.strides), size)


def _cells(size: Sequence[int], stride: Stride) -> list[int]:
    return [-(-n // s) for n, s in zip(size, stride, strict=True)]


def _alignment(encoder: PixelEncoder) -> list[int]:
    """What tiles begin at multiples of, along each axis."""
    strides = [*encoder.strides.values(), encoder.backbone.divisor]
    return [math.lcm(*(int(stride[axis]) for stride in strides)) for axis in range(3)]


def _read(values: np.ndarray, box: Box) -> Tensor:
    """A box as (1, C, Z, Y, X), zero behind the end of the image."""
    stop = np.minimum(box.stop, values.shape[1:])
    place = (slice(None), *map(slice, box.start, stop))
    inside = torch.from_numpy(values[place])
    z, y, x = (int(n) for n in box.stop - stop)
    return F.pad(inside[None], (0, x, 0, y, 0, z))


def _paste(whole: Tensor, part: Tensor, box: Box, padded: Sequence[int], shared: Sequence[int], stride: Stride) -> None:
    """Write the cells of a tile, but for its inner borders, into the map of the image."""
    source: list[slice] = [slice(None)]
    target: list[slice] = [slice(None)]
    for axis, step in enumerate(stride):
        border = shared[axis] // 2 // step  # cells
        start, stop = int(box.start[axis]) // step, int(box.stop[axis]) // step
        first = start + border if start > 0 else 0
        last = min(stop - border if box.stop[axis] < padded[axis] else stop, whole.shape[axis + 1])
        source.append(slice(first - start, max(last, first) - start))
        target.append(slice(first, max(last, first)))
    whole[tuple(target)] = part[tuple(source)].to(whole)
