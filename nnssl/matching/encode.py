"""Encodings of whole images, tile by tile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from nnssl.embedding.tiles import OVERLAP, read_tile, tile_image
from nnssl.networks.encodings import PixelEncoder
from nnssl.networks.pyramid import Stride


@dataclass(frozen=True)
class EncodedImage:
    """Encodings of an image; plain tensors, so that it can be kept for many matches.

    Args:
        maps: by name, such as "fine" and "coarse": (d, ceil(Z / s_z), ...) float16 unit vectors on the CPU.
        strides: voxels (z, y, x) a cell, by name.
        size: (Z, Y, X) voxels of the image.
        lengths: of the vectors of other maps at the fine cells, see `nnssl.matching.match.interpolated_lengths`, by
            name; those that are missing are computed in every search.
    """

    maps: dict[str, Tensor]
    strides: dict[str, Stride]
    size: tuple[int, int, int]
    lengths: dict[str, Tensor] = field(default_factory=dict)


@torch.no_grad()
def encode_image(
    encoder: PixelEncoder,
    values: np.ndarray,
    tile: Sequence[int],
    device: torch.device | str = "cpu",
    overlap: float = OVERLAP,
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
    tiling = tile_image(values.shape[1:], tile, [*encoder.strides.values(), encoder.backbone.divisor], overlap)
    maps = {
        name: torch.zeros(
            [encoder.dims[name], *(-(-n // s) for n, s in zip(tiling.size, stride, strict=True))], dtype=torch.float16
        )
        for name, stride in encoder.strides.items()
    }
    encoder.to(device)
    for box in tiling.boxes:
        encoded = encoder(read_tile(values, box).to(device))
        for name, stride in encoder.strides.items():
            source, target = ((slice(None), *cells) for cells in tiling.cells(box, stride))
            maps[name][target] = encoded[name][0][source].to(maps[name])
    return EncodedImage(maps, dict(encoder.strides), tiling.size)
