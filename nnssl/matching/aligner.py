"""Pairs of points of two volumes by the encodings of a pretrained pixel encoder (Alice; methods.md 4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nnssl.data.volumes import BloscVolume
from nnssl.matching.embeddings import open_embeddings
from nnssl.matching.encode import EncodedImage
from nnssl.matching.match import distance_back, match_points
from nnssl.methods.base import Match

Floats = NDArray[np.float64]
_AT_A_TIME = 32  # draws: most of a search is reading the other volume, which they share


@dataclass(frozen=True)
class EmbeddingAligner:
    """A random point of the body and the cell of the other volume that is most similar to it.

    A match below the threshold is drawn again, at most `draws` times in all; then the last one is taken. It holds no
    encodings: they are read from the disk, where `nnssl.pretraining.alignment` has put them.

    Args:
        checkpoint: of the pixel encoder, to make missing encodings with.
        method: its method.
        key: what tells this encoder's encodings from others'.
        threshold: least mean cosine of a match, -1 to 1.
        draws: at most, >= 1.
        back_mm: farthest that a match, searched in the first volume, may land from its point; None: not checked.
    """

    checkpoint: Path
    method: str
    key: str
    threshold: float = 0.7
    draws: int = 101
    back_mm: float | None = None

    @property
    def identity(self) -> str:
        """Method and key of the encoder, wherever its checkpoint lies."""
        return f"{self.method} {self.key}"

    def match(self, volume: BloscVolume, other: BloscVolume, rng: np.random.Generator) -> Match:
        """Draw points until one matches well enough; all that is random comes from `rng`."""
        query, key = (open_embeddings(v.folder, v.case, self.key) for v in (volume, other))
        left = self.draws
        while True:
            points = np.stack([volume.random_body_voxel(rng) for _ in range(min(_AT_A_TIME, left))])
            left -= len(points)
            at = _moved(points, volume.size, query.size)
            found = match_points(query, key, at)
            good = found.similarity >= self.threshold
            if self.back_mm is not None and good.any():
                spacing = np.asarray(volume.spacing) * volume.size / query.size
                good &= distance_back(query, key, at, found, spacing) <= self.back_mm
            if good.any() or left == 0:
                chosen = int(good.argmax()) if good.any() else -1
                matched = voxel_of(found.points[chosen], key, other.size)
                return Match(points[chosen], other, matched, float(found.similarity[chosen]))


def voxel_of(point: Floats, encoded: EncodedImage, size: NDArray[np.int64]) -> NDArray[np.int64]:
    """Voxel of a volume (Z, Y, X) that a point of its encoded image lies in, which may have other voxels."""
    inside = np.floor(_moved(point, encoded.size, size) + 0.5)
    return np.clip(inside, 0, size - 1).astype(np.int64)


def _moved(points: NDArray, size: NDArray | tuple[int, ...], new_size: NDArray | tuple[int, ...]) -> Floats:
    """Points (..., 3) in voxels of one grid, in those of another one over the same field."""
    moved: Floats = (points + 0.5) * (np.asarray(new_size) / np.asarray(size)) - 0.5
    return moved
