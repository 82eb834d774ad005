"""Stored encodings of volumes, and pairs of points of two volumes by them (Alice; methods.md 4.1)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nnssl.core.errors import UserError
from nnssl.core.files import read_json, replacing, write_json
from nnssl.core.own_files import EncodedFile
from nnssl.data.volumes import BloscVolume, VolumeFolder
from nnssl.features.geometry import Floats
from nnssl.features.match import distance_back, interpolated_lengths, match_points, share_as_good, similarity_map
from nnssl.features.tiles import EncodedImage
from nnssl.methods.base import Match
from nnssl.networks.contrastive import l2_normalise
from nnssl.networks.encodings import PixelEncoder
from nnssl.networks.pyramid import Stride

# Alice's code keeps a cell of 4 mm (2 mm voxels, stride 2; methods.md 4.1): 139 MB for 340 x 340 x 300 mm, 128 numbers.
CELL_MM = 4.0
_ROUNDING = 1e-3
_LENGTHS = "_lengths"


class PooledEncoder(PixelEncoder):
    """A pixel encoder whose finer maps are averaged to cells of about `cell_mm` and normalised again.

    The factor is the largest power of two that keeps a cell at most `cell_mm` long along its axis; larger cells stay.

    Args:
        encoder: with the backbone and heads; it is not changed.
        spacing: (z, y, x) mm a voxel.
        cell_mm: length of a cell, at most.
    """

    def __init__(self, encoder: PixelEncoder, spacing: Sequence[float], cell_mm: float = CELL_MM) -> None:
        super().__init__(encoder.backbone, encoder.named_heads())
        self.factors = {name: pooling_factors(stride, spacing, cell_mm) for name, stride in encoder.strides.items()}
        self.strides = {
            name: cast(Stride, tuple(s * f for s, f in zip(stride, self.factors[name], strict=True)))
            for name, stride in encoder.strides.items()
        }
        self.freeze()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """As of `PixelEncoder`, in larger cells; one that ends beyond the image averages its inner part."""
        return {
            name: l2_normalise(F.avg_pool3d(values, self.factors[name], ceil_mode=True, count_include_pad=False), dim=1)
            for name, values in super().forward(x).items()
        }


def pooling_factors(stride: Stride, spacing: Sequence[float], cell_mm: float) -> Stride:
    """Number of cells (z, y, x) of a map that become one."""
    longest = [cell_mm * (1 + _ROUNDING) / (s * mm) for s, mm in zip(stride, spacing, strict=True)]
    z, y, x = (2 ** max(int(np.floor(np.log2(factor))), 0) for factor in longest)
    return z, y, x


def embedding_folder(folder: VolumeFolder, key: str) -> Path:
    """Folder of the encodings of a dataset's volumes by one encoder."""
    return folder.images.with_name(f"{folder.images.name}_embeddings_{key}")


def save_embeddings(folder: VolumeFolder, case: str, key: str, encoded: EncodedImage) -> int:
    """Write the encodings of a volume and return the number of bytes.

    Raises:
        OSError: the disk is full.
    """
    home = embedding_folder(folder, key)
    home.mkdir(exist_ok=True)
    tensors = {name: values.to(torch.float16) for name, values in encoded.maps.items()}
    lengths = interpolated_lengths(encoded)
    tensors |= {f"{name}{_LENGTHS}": values for name, values in lengths.items()}
    for name, values in tensors.items():
        _save(home / f"{case}.{name}.npy", values)
    described = {
        "size": [int(n) for n in encoded.size],
        "strides": encoded.strides,
        "lengths": sorted(lengths),
        "image_bytes": _image_bytes(folder, case),
    }
    write_json(home / f"{case}.json", described)
    return sum(values.numel() * values.element_size() for values in tensors.values())


def has_embeddings(folder: VolumeFolder, case: str, key: str) -> bool:
    """Whether a volume has encodings, made from the file as it is now."""
    file = embedding_folder(folder, key) / f"{case}.json"
    try:
        return file.is_file() and bool(read_json(file, EncodedFile)["image_bytes"] == _image_bytes(folder, case))
    except UserError:  # damaged: it is made again
        return False


def open_embeddings(folder: VolumeFolder, case: str, key: str) -> EncodedImage:
    """The encodings of a volume, mapped into memory: processes that read the same volume share them.

    Raises:
        OSError: they are missing.
    """
    home = embedding_folder(folder, key)
    described = json.loads((home / f"{case}.json").read_text())  # `has_embeddings` has checked it; read for every match
    strides: dict[str, Stride] = {name: cast(Stride, tuple(s)) for name, s in described["strides"].items()}

    def load(name: str) -> Tensor:
        # "c" and not "r": torch takes no array that cannot be written to; nothing is written
        return torch.from_numpy(np.load(home / f"{case}.{name}.npy", mmap_mode="c"))

    maps = {name: load(name) for name in strides}
    lengths = {name: load(f"{name}{_LENGTHS}") for name in described.get("lengths", [])}
    return EncodedImage(maps, strides, cast(tuple[int, int, int], tuple(described["size"])), lengths)


def _image_bytes(folder: VolumeFolder, case: str) -> int:
    """Size of the compressed volume, which almost always changes with the volume."""
    return (folder.images / f"{case}.b2nd").stat().st_size


def _save(file: Path, values: Tensor) -> None:
    with replacing(file) as temporary, open(temporary, "wb") as opened:
        np.save(opened, values.numpy())


_AT_A_TIME = 32  # draws: most of a search is reading the other volume, which they share


@dataclass(frozen=True)
class EmbeddingAligner:
    """A random point of the body and the most similar cell of the other volume.

    A match below the threshold is drawn again, at most `draws` times in all; then the last one counts. Encodings are
    read from the disk, where `nnssl.pretraining.alignment` has written them.

    Args:
        checkpoint: of the pixel encoder, to make missing encodings with.
        method: its method.
        key: of this encoder's encodings.
        threshold: least mean cosine of a match, -1 to 1.
        draws: at most, >= 1.
        back_mm: largest distance from its point at which a match, searched in the first volume, may land; None for any.
    """

    checkpoint: Path
    method: str
    key: str
    threshold: float = 0.7
    draws: int = 101
    back_mm: float | None = None

    @property
    def identity(self) -> str:
        """Method and key of the encoder, without the place of its checkpoint."""
        return f"{self.method} {self.key}"

    def match(self, volume: BloscVolume, other: BloscVolume, rng: np.random.Generator) -> Match:
        """Draw points by `rng` until one matches well enough."""
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


def sameness(aligner: EmbeddingAligner, volume: BloscVolume, other: BloscVolume, points: Floats) -> tuple[float, float]:
    """How little the encodings tell places apart: of points of a volume, searched in another one.

    Args:
        aligner: whose encodings are stored.
        volume: with the points.
        other: to search.
        points: (N, 3) voxels of `volume`.

    Returns:
        Mean part of `other` that is as good as the best place (`nnssl.features.match.share_as_good`), and the mean
        similarity there.
    """
    query, key = (open_embeddings(v.folder, v.case, aligner.key) for v in (volume, other))
    maps = [similarity_map(query, key, at)[0] for at in _moved(points, volume.size, query.size)]
    return float(np.mean([share_as_good(found) for found in maps])), float(np.mean([found.max() for found in maps]))


def voxel_of(point: Floats, encoded: EncodedImage, size: NDArray[np.int64]) -> NDArray[np.int64]:
    """Voxel of a volume (Z, Y, X) around a point of its encoded image, whose grid may be another."""
    inside = np.floor(_moved(point, encoded.size, size) + 0.5)
    return np.clip(inside, 0, size - 1).astype(np.int64)


def _moved(points: NDArray, size: NDArray | tuple[int, ...], new_size: NDArray | tuple[int, ...]) -> Floats:
    """Points (..., 3) from voxels of one grid to those of another one over the same field."""
    moved: Floats = (points + 0.5) * (np.asarray(new_size) / np.asarray(size)) - 0.5
    return moved
