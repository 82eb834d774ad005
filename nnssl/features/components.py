"""Principal components of features: of a few vectors, or of a bounded sample of body voxels of many images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnssl.core.errors import BadCase, UserError
from nnssl.core.files import replace_file
from nnssl.core.geometry import Box
from nnssl.features.match import Vectors
from nnssl.features.model import PretrainedModel
from nnssl.features.tiles import Slices, Tiling, run_tile, tile_for
from nnssl.networks.pyramid import Stride, gather_voxels

Floats = NDArray[np.float64]

VOXELS = 50_000  # of all cases together, for the fit
TILES = 256  # of all cases together, that hold these voxels; at least one of each case


@dataclass(frozen=True)
class Projection:
    """A projection of features to their first components.

    Args:
        mean: (D,) of the features.
        components: (K, D) unit vectors, see `leading_axes`.
        explained: (K,) share of the whole variance.
        level: of the features, see `nnssl.features.tiles.dense_features`.
        weights: `PretrainedModel.fingerprint` of their network.
    """

    mean: Floats
    components: Floats
    explained: Floats
    level: int | None
    weights: str

    @property
    def offset(self) -> Tensor:
        """(K,) to add to the components' products with the features."""
        return torch.from_numpy(-self.components @ self.mean).float()

    def apart(self, channels: Sequence[int], device: torch.device) -> list[Tensor]:
        """The components (K, C_l) of each level's channels."""
        return list(torch.from_numpy(self.components).float().to(device).split(list(channels), dim=1))

    def save(self, file: Path) -> None:
        """Write an npz file, in one piece."""
        import io

        content = io.BytesIO()
        np.savez(content, mean=self.mean, components=self.components, explained=self.explained,
                 level=-1 if self.level is None else self.level, weights=self.weights)  # fmt: skip
        replace_file(file, content.getvalue())


def load_projection(file: Path, model: PretrainedModel, level: int | None) -> Projection:
    """Read a projection and check that it was fitted on these features.

    Raises:
        UserError: the file is missing or no projection, or it was fitted on other features.
    """
    if not file.is_file():
        raise UserError(f"there is no file {file}; -pca takes the pca.npz of another nnssl_embed")
    try:
        with np.load(file) as content:
            of_level = int(content["level"])
            found = Projection(content["mean"], content["components"], content["explained"],
                               None if of_level < 0 else of_level, str(content["weights"]))  # fmt: skip
    except (OSError, ValueError, KeyError, BadZipFile, TypeError, AttributeError) as error:  # also of an npy file
        raise UserError(f"{file} is not a pca.npz of nnssl_embed; leave out -pca to fit one") from error
    if found.weights != model.fingerprint:
        raise UserError(f"{file} was fitted on features of another network than {model.path}; leave out -pca, or name "
                        f"the model that it was made with")  # fmt: skip
    if found.level != level:
        of = "all levels" if found.level is None else f"level {found.level}"
        fix = "leave out -level" if found.level is None else f"add -level {found.level}"
        raise UserError(f"{file} was fitted on {of}; {fix}")
    return found


class Moments:
    """Mean and covariance of rows that come in parts; it holds (D, D) float64 and no row."""

    def __init__(self) -> None:
        self.count = 0
        self._shift: Floats | None = None  # near the mean: no digits are lost
        self._sum: Floats | float = 0.0
        self._products: Floats | float = 0.0

    def add(self, rows: NDArray) -> None:
        """Add rows (n, D)."""
        if self._shift is None:
            self._shift = rows.mean(0, dtype=np.float64)
        moved = rows - self._shift
        self.count += len(rows)
        self._sum = self._sum + moved.sum(0)
        self._products = self._products + moved.T @ moved

    def project(self, components: int, level: int | None, weights: str) -> Projection:
        """The first components.

        Raises:
            UserError: there are fewer rows than components.
        """
        if self._shift is None or self.count <= components:
            raise UserError(f"{components} components need more than the {self.count} body voxels that the images have "
                            f"together; set a smaller -components")  # fmt: skip
        centre = np.asarray(self._sum) / self.count
        covariance = np.asarray(self._products) / self.count - np.outer(centre, centre)
        axes, share = leading_axes(covariance, components)
        return Projection(self._shift + centre, axes, share, level, weights)


def leading_axes(covariance: Floats, count: int) -> tuple[Floats, Floats]:
    """The first principal axes of a covariance (D, D), and each one's share of the whole variance.

    Returns:
        (K, D) unit vectors, the largest variance first, with a positive largest entry so that the same data give the
        same signs; and (K,) shares. K is `count`, or D if that is less.
    """
    variances, vectors = np.linalg.eigh(covariance)  # ascending
    axes = vectors.T[::-1][:count]
    signs = np.sign(np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1))
    variances = np.clip(variances[::-1], 0, None)
    return axes * signs, variances[:count] / max(variances.sum(), np.finfo(np.float64).tiny)


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
        raise BadCase("all air: no body voxel on the grid of the plans")
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


@dataclass(frozen=True)
class Balance:
    """Joins the vectors of several maps so that every map counts alike.

    The vectors of each map are centred and divided by the root of their mean squared length.

    Args:
        means: (d,) by the name of the map.
        scales: divisor of each map.
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
        axes: (k, D) orthonormal rows, see `leading_axes`.
        explained: (k,) share of the whole variance, 0 to 1.
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
