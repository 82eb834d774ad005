"""Where the points of one encoded image are in another one (methods.md 4.1, 5.1: `sam/matching`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nnssl.features.tiles import OVERLAP, read_tile, tile_image
from nnssl.networks.contrastive import l2_normalise
from nnssl.networks.encodings import PixelEncoder
from nnssl.networks.pyramid import Stride, interpolate_cells


@dataclass(frozen=True)
class EncodedImage:
    """Encodings of an image; plain tensors, so that it can be kept for many matches.

    Args:
        maps: by name, such as "fine" and "coarse": (d, ceil(Z / s_z), ...) float16 unit vectors on the CPU.
        strides: voxels (z, y, x) a cell, by name.
        size: (Z, Y, X) voxels of the image.
        lengths: of the vectors of other maps at the fine cells, see `nnssl.features.match.interpolated_lengths`, by
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


Floats = NDArray[np.float64]
_FINE = "fine"  # the map whose cells are compared
_CELLS = 2**17  # of the key image at a time: 64 MB of 128 channels
_POINTS = 64  # at a time
_PLANES = 16  # of fine cells at a time, for the lengths
_EPS = 1e-12


@dataclass(frozen=True)
class Matches:
    """The best places of N points.

    Args:
        points: (N, 3) centres of the best cells, in voxels (z, y, x) of the key image.
        similarity: (N,) mean cosine of the embeddings there, -1 to 1.
    """

    points: Floats
    similarity: Floats


def match_points(query: EncodedImage, key: EncodedImage, points: ArrayLike) -> Matches:
    """Find the cells of the key image that are most similar to points of the query image.

    The similarity of two fine cells is the mean cosine of all embeddings that both images have: the fine one, and
    others interpolated there trilinearly and normalised again. A point stands for the cell that it lies in.

    Args:
        query: image that the points are in.
        key: image that is searched, encoded by the same network.
        points: (N, 3) voxels (z, y, x) of the query image; they may lie between its voxels.
    """
    voxels = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    found = [_best(read_encodings(query, part), key) for part in np.split(voxels, range(_POINTS, len(voxels), _POINTS))]
    return Matches(np.concatenate([m.points for m in found]), np.concatenate([m.similarity for m in found]))


def similarity_map(query: EncodedImage, key: EncodedImage, point: ArrayLike) -> NDArray[np.float32]:
    """Similarity of every fine cell of the key image to one point (3,) of the query image: (Z, Y, X) of the map."""
    vectors = read_encodings(query, np.asarray(point, dtype=np.float64).reshape(1, 3))
    return np.concatenate([similarity[0].numpy() for _, similarity in _similarities(vectors, key)])


def distance_back(
    query: EncodedImage, key: EncodedImage, points: ArrayLike, matches: Matches, spacing: ArrayLike
) -> Floats:
    """Match the matches back: how far each lands from where it began.

    Args:
        query: image that the points are in.
        key: image that was searched.
        points: (N, 3) voxels of the query image.
        matches: of these points.
        spacing: (3,) mm a voxel (z, y, x) of the query image.

    Returns:
        (N,) mm; within a cell or so for points that both images show.
    """
    landed = match_points(key, query, matches.points).points
    distances: Floats = np.linalg.norm((landed - np.asarray(points).reshape(-1, 3)) * np.asarray(spacing), axis=1)
    return distances


def read_encodings(image: EncodedImage, points: Floats) -> dict[str, Tensor]:
    """Unit vectors (N, d) by name of the fine cells that hold points (N, 3) in voxels.

    They are what the cells of a key image are compared by, so that an image matches itself exactly: other maps are read
    at the centres of the fine cells, by trilinear interpolation.
    """
    stride, fine = np.asarray(image.strides[_FINE]), image.maps[_FINE]
    cells = np.clip(np.floor((points + 0.5) / stride), 0, np.asarray(fine.shape[1:]) - 1)
    z, y, x = torch.from_numpy(cells).long().unbind(1)
    vectors = {_FINE: l2_normalise(fine[:, z, y, x].T)}
    centres = torch.from_numpy(np.insert((cells + 0.5) * stride - 0.5, 0, 0, axis=1))
    for name in image.maps.keys() - {_FINE}:
        values = image.maps[name]
        corners, weights = interpolate_cells(values.shape[1:], image.strides[name], centres)
        _, z, y, x = corners.unbind(-1)
        vectors[name] = l2_normalise((values[:, z, y, x].float() * weights.float()).sum(-1).T)
    return vectors


def _best(vectors: Mapping[str, Tensor], key: EncodedImage) -> Matches:
    count = len(vectors[_FINE])
    similarity, cell = torch.full((count,), -torch.inf), torch.zeros(count, dtype=torch.long)
    size = key.maps[_FINE].shape[1:]
    for first, part in _similarities(vectors, key):
        value, index = part.flatten(1).max(1)
        better = value > similarity
        similarity = torch.where(better, value, similarity)
        cell = torch.where(better, index + first * size[1] * size[2], cell)
    cells = np.stack(np.unravel_index(cell.numpy(), tuple(size)), axis=1)
    centres = (cells + 0.5) * key.strides[_FINE] - 0.5
    # the last cell may end behind the image
    return Matches(np.minimum(centres, np.asarray(key.size) - 1.0), similarity.double().numpy())


def _similarities(vectors: Mapping[str, Tensor], key: EncodedImage) -> Iterator[tuple[int, Tensor]]:
    """Yield the first plane, and (N, planes, Y, X), of one part of the fine cells after the other."""
    names = [name for name in vectors if name in key.maps]
    others = [name for name in names if name != _FINE]
    # cosines with interpolated vectors are interpolated products, divided by the lengths of those vectors
    products = {name: torch.einsum("nd,dzyx->nzyx", vectors[name], key.maps[name].float()) for name in others}
    fine = key.maps[_FINE]
    _, depth, height, width = fine.shape
    planes = max(1, _CELLS // (height * width))
    for first in range(0, depth, planes):
        part = fine[:, first : first + planes]
        total = vectors[_FINE] @ l2_normalise(part, dim=0).flatten(1)
        for name in others:
            lengths = key.lengths.get(name)
            known = _lengths(key, name, first, planes) if lengths is None else lengths[first : first + planes]
            total += (at_fine_cells(products[name], key, name, first, planes) / known.clamp_min(_EPS)).flatten(1)
        yield first, (total / len(names)).unflatten(1, part.shape[1:])


def interpolated_lengths(image: EncodedImage) -> dict[str, Tensor]:
    """Lengths (Z, Y, X) float32 of the other maps' vectors, interpolated at the fine cells, by name.

    They are what takes longest in a search; one that keeps an image for many can keep them with it.
    """
    depth = image.maps[_FINE].shape[1]
    return {
        name: torch.cat([_lengths(image, name, first, _PLANES) for first in range(0, depth, _PLANES)])
        for name in image.maps.keys() - {_FINE}
    }


def _lengths(key: EncodedImage, name: str, first: int, planes: int) -> Tensor:
    return torch.linalg.vector_norm(at_fine_cells(key.maps[name].float(), key, name, first, planes), dim=0)


def at_fine_cells(values: Tensor, key: EncodedImage, name: str, first: int, planes: int) -> Tensor:
    """Values (N, ...) of another map's cells, trilinear at so many planes of the fine cells: (N, planes, Y, X)."""
    size = key.maps[_FINE][:, first : first + planes].shape[1:]
    grid = _sampling_grid(key, name, first, size)
    return F.grid_sample(values[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0]


def _sampling_grid(key: EncodedImage, name: str, first: int, size: torch.Size) -> Tensor:
    """Where fine cells (planes, Y, X) from a plane on lie in another map: (1, planes, Y, X, 3) for `grid_sample`."""
    lines = []
    for axis, (count, begin) in enumerate(zip(size, (first, 0, 0), strict=True)):
        voxels = (torch.arange(begin, begin + count) + 0.5) * key.strides[_FINE][axis] - 0.5
        # cell c of n, whose centre lies at voxel (c + 0.5) * stride - 0.5, is at (2 c + 1) / n - 1
        lines.append(2 * (voxels + 0.5) / (key.strides[name][axis] * key.maps[name].shape[axis + 1]) - 1)
    z, y, x = torch.meshgrid(*lines, indexing="ij")
    return torch.stack([x, y, z], dim=-1)[None]
