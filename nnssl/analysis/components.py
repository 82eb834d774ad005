"""Principal components of feature vectors, and of whole maps in a bounded amount of memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nnssl.analysis.features import Vectors
from nnssl.features.components import leading_axes
from nnssl.features.match import EncodedImage, at_fine_cells

Floats = NDArray[np.float64]
_CELLS = 2**18  # of the finest map at a time
_SHOWN = (1.0, 99.0)  # percentiles of the body's voxels that are the ends of a colour


@dataclass(frozen=True)
class Balance:
    """Makes one vector of those of several maps, so that every map counts alike.

    Each map's vectors are centred, and divided by the root of their mean squared length.

    Args:
        means: (d,) by the name of the map.
        scales: what each map is divided by.
    """

    means: dict[str, NDArray[np.float32]]
    scales: dict[str, float]

    @classmethod
    def of(cls, vectors: Mapping[str, NDArray[np.float32]]) -> Balance:
        """Of vectors (N, d) by name."""
        means = {name: part.mean(0) for name, part in vectors.items()}
        squares = {name: float(((part - means[name]) ** 2).sum(1).mean()) for name, part in vectors.items()}
        return cls(means, {name: max(square, 1e-24) ** 0.5 for name, square in squares.items()})

    def __call__(self, vectors: Vectors) -> Floats:
        """(N, sum of d) of vectors (N, d) by name."""
        parts = [(vectors[name] - mean) / self.scales[name] for name, mean in self.means.items()]
        return np.concatenate(parts, axis=1).astype(np.float64)


@dataclass(frozen=True)
class Components:
    """Principal components.

    Args:
        mean: (D,) of the vectors.
        axes: (k, D) orthonormal rows, the first one with the largest variance; the largest entry of each is positive,
            so that the same vectors always give the same signs.
        explained: (k,) each one's part of the variance, 0 to 1.
    """

    mean: Floats
    axes: Floats
    explained: Floats

    def __call__(self, vectors: Floats) -> Floats:
        """Project vectors (N, D) to (N, k)."""
        projected: Floats = (vectors - self.mean) @ self.axes.T
        return projected


def principal_components(vectors: Floats, count: int) -> Components:
    """The first components of vectors (N, D); zeros where there are fewer than `count`."""
    mean = vectors.mean(0)
    centred = vectors - mean
    axes, explained = leading_axes(centred.T @ centred / len(vectors), count)
    missing = count - len(axes)
    return Components(mean, np.pad(axes, ((0, missing), (0, 0))), np.pad(explained, (0, missing)))


def ends_of_colours(projected: Floats) -> Floats:
    """(k, 2) values of projected vectors (N, k) that are shown darkest and brightest."""
    return np.percentile(projected, _SHOWN, axis=0).T


def project_image(
    image: EncodedImage, balance: Balance, components: Components, ends: Floats, body: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """The components of every cell of an image's finest map, as colours.

    Coarser maps are interpolated trilinearly; projecting them first gives the same and needs little memory.

    Args:
        image: maps of an image.
        balance: of its vectors.
        components: k of the balanced vectors.
        ends: (k, 2) values that become 1 and 255.
        body: (Z, Y, X) voxels that are shown; cells whose centre is elsewhere are 0.

    Returns:
        (k, Z, Y, X) of the cells of the finest map.
    """
    projected, first_column = {}, 0
    for name, mean in balance.means.items():
        axes = components.axes[:, first_column : first_column + len(mean)] / balance.scales[name]
        first_column += len(mean)
        weight = torch.from_numpy(axes).float()
        offset = torch.from_numpy(axes @ mean.astype(np.float64)).float()[:, None, None, None]
        projected[name] = torch.einsum("kd,dzyx->kzyx", weight, image.maps[name].float()) - offset
    offset = torch.from_numpy(components.axes @ components.mean).float()[:, None, None, None]
    low = torch.from_numpy(ends[:, 0]).float()[:, None, None, None]
    width = torch.from_numpy(np.maximum(ends[:, 1] - ends[:, 0], 1e-12)).float()[:, None, None, None]
    fine = projected.pop("fine")
    colours = np.zeros(fine.shape, dtype=np.uint8)
    planes = max(1, _CELLS // int(np.prod(fine.shape[2:])))
    for first in range(0, fine.shape[1], planes):
        total = fine[:, first : first + planes] - offset
        for name, values in projected.items():
            total += at_fine_cells(values, image, name, first, planes)
        shown = 1 + 254 * ((total - low) / width).clamp(0, 1)
        colours[:, first : first + planes] = shown.round().byte().numpy()
    return colours * cells_in(body, image.strides["fine"], colours.shape[1:])


def cells_in(body: NDArray[np.bool_], stride: tuple[int, ...], cells: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which cells (Z, Y, X) of so many voxels have their centre in a mask of voxels."""
    places = [
        np.minimum(np.arange(count) * step + step // 2, size - 1)
        for count, step, size in zip(cells, stride, body.shape, strict=True)
    ]
    return np.asarray(body[np.ix_(*places)])
