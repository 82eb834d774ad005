"""Vectors at points of encoded images, and where the points of one are in another (methods.md 4.1, 5.1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from nnssl.features.geometry import Floats
from nnssl.features.tiles import LARGEST, EncodedImage
from nnssl.networks.contrastive import l2_normalise
from nnssl.networks.pyramid import Stride, interpolate_cells

Vectors = dict[str, NDArray[np.float32]]  # (N, d) by the name of the map that they were read from
_FINE = "fine"  # the map whose cells are compared
_READ = 20_000  # points at a time
_CELLS = 2**17  # of the key image at a time: 64 MB of 128 channels
_POINTS = 64  # at a time
_PLANES = 16  # of fine cells at a time, for the lengths
_AS_GOOD = 0.005  # below the best similarity: two decimals show no difference
ANYWHERE = 0.25  # of an image: where more of it is as good as the best place, the match means nothing
_EPS = 1e-12


def read_vectors(image: EncodedImage, points: ArrayLike) -> Vectors:
    """Read all maps at points by trilinear interpolation.

    Args:
        image: encoded image.
        points: (N, 3) voxels (z, y, x) of the image; not always whole.

    Returns:
        (N, d) float32 by name.
    """
    voxels = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    parts = np.split(voxels, range(_READ, len(voxels), _READ))
    return {
        name: np.concatenate([_interpolated(values, image.strides[name], part).numpy() for part in parts])
        for name, values in image.maps.items()
    }


def _interpolated(values: Tensor, stride: Stride, points: Floats) -> Tensor:
    """A map (d, Z, Y, X) at points (N, 3) in voxels: (N, d) float32."""
    corners, weights = interpolate_cells(values.shape[1:], stride, torch.from_numpy(np.insert(points, 0, 0, axis=1)))
    _, z, y, x = corners.unbind(-1)
    return (values[:, z, y, x].float() * weights.float()).sum(-1).T


def comparable(images: Sequence[EncodedImage], voxels: ArrayLike, encodes: bool) -> list[EncodedImage]:
    """Images whose cosines say something.

    Features of a convolutional network are mostly alike everywhere: their mean over the body of the first image is
    subtracted from all images. Encodings that were trained by their cosine stay as they are.

    Args:
        images: one or more.
        voxels: (N, 3) voxels of the first image's body.
        encodes: whether the maps are such encodings.
    """
    if encodes:
        return list(images)
    means = {name: torch.from_numpy(vectors.mean(0)) for name, vectors in read_vectors(images[0], voxels).items()}
    return [
        replace(image, maps={
            name: (values.float() - means[name][:, None, None, None]).clamp(-LARGEST, LARGEST).half()
            for name, values in image.maps.items()
        })
        for image in images
    ]  # fmt: skip


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

    The similarity of two fine cells is the mean cosine of all maps that both images have; coarser maps are interpolated
    trilinearly and normalised again. A point stands for the cell that holds it.

    Args:
        query: image with the points.
        key: image to search, encoded by the same network.
        points: (N, 3) voxels (z, y, x) of the query image; not always whole.
    """
    voxels = np.asarray(points, dtype=np.float64).reshape(-1, 3)
    found = [_best(read_encodings(query, part), key) for part in np.split(voxels, range(_POINTS, len(voxels), _POINTS))]
    return Matches(np.concatenate([m.points for m in found]), np.concatenate([m.similarity for m in found]))


def similarity_map(query: EncodedImage, key: EncodedImage, point: ArrayLike) -> tuple[NDArray[np.float32], Matches]:
    """Similarity of every fine cell of the key image to one point (3,) of the query image, and the best place.

    Returns:
        (Z, Y, X) of the map, and what `match_points` finds for this point.
    """
    vectors = read_encodings(query, np.asarray(point, dtype=np.float64).reshape(1, 3))
    similarity = np.concatenate([part[0].numpy() for _, part in _similarities(vectors, key)])
    best = similarity.argmax()
    return similarity, _matches(np.array([best]), similarity.ravel()[[best]], key)


def share_as_good(similarity: NDArray[np.float32]) -> float:
    """Part of a similarity map that is as good as its best place, to two decimals.

    It is a few cells for encodings that know places, and 1 for those that are the same everywhere; see `ANYWHERE`.
    """
    return float((similarity >= similarity.max() - _AS_GOOD).mean())


def distance_back(
    query: EncodedImage, key: EncodedImage, points: ArrayLike, matches: Matches, spacing: ArrayLike
) -> Floats:
    """Search the matches in the query image: how far from its point each lands.

    Args:
        query: image with the points.
        key: image that was searched.
        points: (N, 3) voxels of the query image.
        matches: of these points.
        spacing: (3,) mm a voxel (z, y, x) of the query image.

    Returns:
        (N,) mm; about a cell for points that both images show.
    """
    landed = match_points(key, query, matches.points).points
    distances: Floats = np.linalg.norm((landed - np.asarray(points).reshape(-1, 3)) * np.asarray(spacing), axis=1)
    return distances


def read_encodings(image: EncodedImage, points: Floats) -> dict[str, Tensor]:
    """Unit vectors (N, d) by name of the fine cells that hold points (N, 3) in voxels.

    Other maps are interpolated at the centres of these cells, as in a key image: an image matches itself exactly.
    """
    stride, fine = np.asarray(image.strides[_FINE]), image.maps[_FINE]
    cells = np.clip(np.floor((points + 0.5) / stride), 0, np.asarray(fine.shape[1:]) - 1)
    z, y, x = torch.from_numpy(cells).long().unbind(1)
    vectors = {_FINE: l2_normalise(fine[:, z, y, x].T)}
    centres = (cells + 0.5) * stride - 0.5
    for name in _coarser(image):
        vectors[name] = l2_normalise(_interpolated(image.maps[name], image.strides[name], centres))
    return vectors


def _coarser(image: EncodedImage) -> list[str]:
    """The other maps; always in one order, as sums of floats depend on it."""
    return [name for name in image.maps if name != _FINE]


def _best(vectors: Mapping[str, Tensor], key: EncodedImage) -> Matches:
    count = len(vectors[_FINE])
    similarity, cell = torch.full((count,), -torch.inf), torch.zeros(count, dtype=torch.long)
    size = key.maps[_FINE].shape[1:]
    for first, part in _similarities(vectors, key):
        value, index = part.flatten(1).max(1)
        better = value > similarity
        similarity = torch.where(better, value, similarity)
        cell = torch.where(better, index + first * size[1] * size[2], cell)
    return _matches(cell.numpy(), similarity.numpy(), key)


def _matches(cells: NDArray[np.int64], similarity: NDArray[np.float32], key: EncodedImage) -> Matches:
    """Of the numbers (N,) of fine cells."""
    places = np.stack(np.unravel_index(cells, tuple(key.maps[_FINE].shape[1:])), axis=1)
    centres = (places + 0.5) * key.strides[_FINE] - 0.5
    # the last cell may end beyond the image
    return Matches(np.minimum(centres, np.asarray(key.size) - 1.0), similarity.astype(np.float64))


def _similarities(vectors: Mapping[str, Tensor], key: EncodedImage) -> Iterator[tuple[int, Tensor]]:
    """Part by part of the fine cells, yield the first plane and the similarities (N, planes, Y, X)."""
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

    They take longest in a search: keep them with an image that is searched often.
    """
    depth = image.maps[_FINE].shape[1]
    return {
        name: torch.cat([_lengths(image, name, first, _PLANES) for first in range(0, depth, _PLANES)])
        for name in _coarser(image)
    }


def _lengths(key: EncodedImage, name: str, first: int, planes: int) -> Tensor:
    return torch.linalg.vector_norm(at_fine_cells(key.maps[name].float(), key, name, first, planes), dim=0)


def at_fine_cells(values: Tensor, key: EncodedImage, name: str, first: int, planes: int) -> Tensor:
    """Values (N, ...) of another map's cells, interpolated at some planes of the fine cells: (N, planes, Y, X)."""
    size = key.maps[_FINE][:, first : first + planes].shape[1:]
    grid = _sampling_grid(key, name, first, size)
    return F.grid_sample(values[None], grid, mode="bilinear", padding_mode="border", align_corners=False)[0]


def _sampling_grid(key: EncodedImage, name: str, first: int, size: torch.Size) -> Tensor:
    """Places in another map of fine cells (planes, Y, X) from a plane on: (1, planes, Y, X, 3) for `grid_sample`."""
    lines = []
    for axis, (count, begin) in enumerate(zip(size, (first, 0, 0), strict=True)):
        voxels = (torch.arange(begin, begin + count) + 0.5) * key.strides[_FINE][axis] - 0.5
        # cell c of n, whose centre is at voxel (c + 0.5) * stride - 0.5, is at (2 c + 1) / n - 1
        lines.append(2 * (voxels + 0.5) / (key.strides[name][axis] * key.maps[name].shape[axis + 1]) - 1)
    z, y, x = torch.meshgrid(*lines, indexing="ij")
    return torch.stack([x, y, z], dim=-1)[None]
