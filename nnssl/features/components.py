"""Principal components of features: of a few vectors, or of a bounded sample of body voxels of many images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnssl.core.errors import UserError
from nnssl.core.files import replace_file
from nnssl.features.geometry import Floats
from nnssl.features.match import Vectors
from nnssl.features.model import PretrainedModel


@dataclass(frozen=True)
class Projection:
    """A projection of features to their first components.

    Args:
        mean: (D,) of the features.
        components: (K, D) unit vectors, see `leading_axes`; those of `balanced_components` are divided by the scales.
        explained: (K,) share of the whole variance.
        level: of the features, see `nnssl.features.tiles.dense_features`; None for all.
        weights: `PretrainedModel.fingerprint` of their network; empty where they are not kept.
    """

    mean: Floats
    components: Floats
    explained: Floats
    level: int | None = None
    weights: str = ""

    def __call__(self, vectors: Vectors) -> Floats:
        """Project vectors (N, d) by name of the map to (N, K)."""
        projected: Floats = (_joined(vectors) - self.mean) @ self.components.T
        return projected

    @property
    def offset(self) -> Tensor:
        """(K,) to add to the components' products with the features."""
        return torch.from_numpy(-self.components @ self.mean).float()

    def apart(self, channels: Sequence[int], device: torch.device | str = "cpu") -> list[Tensor]:
        """The components (K, C_l) of each level's channels."""
        return list(torch.from_numpy(self.components).float().to(device).split(list(channels), dim=1))

    def save(self, file: Path) -> None:
        """Write an npz file, in one piece."""
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


def balanced_components(vectors: Vectors, count: int) -> Projection:
    """The first components of vectors (N, d) by name of the map, where every map counts alike.

    The vectors of each map are centred and divided by the root of their mean squared length. Where there are fewer
    channels than `count`, the last components are zero.
    """
    joined = _joined(vectors)
    mean = joined.mean(0)
    centred = joined - mean
    last = np.cumsum([part.shape[1] for part in vectors.values()])[:-1]
    squares = [np.full(part.shape[1], (part**2).sum(1).mean()) for part in np.split(centred, last, axis=1)]
    scales = np.sqrt(np.maximum(np.concatenate(squares), 1e-24))
    balanced = centred / scales
    axes, explained = leading_axes(balanced.T @ balanced / len(balanced), count)
    missing = count - len(axes)
    return Projection(mean, np.pad(axes / scales, ((0, missing), (0, 0))), np.pad(explained, (0, missing)))


def _joined(vectors: Vectors) -> Floats:
    """(N, sum of d) of vectors (N, d) by name."""
    return np.concatenate(list(vectors.values()), axis=1, dtype=np.float64)
