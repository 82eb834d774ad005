"""Encodings of preprocessed volumes on the disk: float16, memory-mapped, at a size that does not depend on the encoder.

Beside nnU-Net's folder `<data_identifier>` lies one folder an encoder, `<data_identifier>_embeddings_<key>`, with
`<case>.<map>.npy` for every map, `<case>.<map>_lengths.npy` for those that searches interpolate, and `<case>.json`,
which is written last: a case that has it is whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nnssl.core.json_files import read_json, write_json
from nnssl.core.own_files import EncodedFile
from nnssl.core.system import name_file
from nnssl.data.volumes import VolumeFolder
from nnssl.errors import UserError
from nnssl.losses.normalise import l2_normalise
from nnssl.matching.encode import EncodedImage
from nnssl.matching.match import interpolated_lengths
from nnssl.networks.encodings import PixelEncoder
from nnssl.networks.pyramid import Stride

# Alice's code keeps a cell of 4 mm (2 mm voxels, stride 2; methods.md 4.1): 139 MB for 340 x 340 x 300 mm, 128 numbers.
CELL_MM = 4.0
_ROUNDING = 1e-3
_LENGTHS = "_lengths"


class PooledEncoder(PixelEncoder):
    """A pixel encoder whose finer maps are averaged and normalised again, up to cells of about so many mm.

    The factor is the largest power of two that keeps a cell at most so long along its axis; larger cells stay.

    Args:
        encoder: whose backbone and heads are used; it is not changed.
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
        """As of `PixelEncoder`, in larger cells; one that ends behind the image averages what is inside."""
        return {
            name: l2_normalise(F.avg_pool3d(values, self.factors[name], ceil_mode=True, count_include_pad=False), dim=1)
            for name, values in super().forward(x).items()
        }


def pooling_factors(stride: Stride, spacing: Sequence[float], cell_mm: float) -> Stride:
    """How many cells (z, y, x) of a map become one."""
    longest = [cell_mm * (1 + _ROUNDING) / (s * mm) for s, mm in zip(stride, spacing, strict=True)]
    z, y, x = (2 ** max(int(np.floor(np.log2(factor))), 0) for factor in longest)
    return z, y, x


def embedding_folder(folder: VolumeFolder, key: str) -> Path:
    """Where the encodings of a dataset's volumes by one encoder lie."""
    return folder.images.with_name(f"{folder.images.name}_embeddings_{key}")


def save_embeddings(folder: VolumeFolder, case: str, key: str, encoded: EncodedImage) -> int:
    """Write the encodings of a volume; returns the number of bytes.

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
    """Whether the encodings of a volume are there, and not those of a file that has been replaced since."""
    file = embedding_folder(folder, key) / f"{case}.json"
    try:
        return file.is_file() and bool(read_json(file, EncodedFile)["image_bytes"] == _image_bytes(folder, case))
    except UserError:  # damaged, which is as good as not there: it is made again
        return False


def open_embeddings(folder: VolumeFolder, case: str, key: str) -> EncodedImage:
    """The encodings of a volume, mapped into memory: processes that read the same volume share them.

    Raises:
        OSError: they are not there.
    """
    home = embedding_folder(folder, key)
    described = json.loads((home / f"{case}.json").read_text())  # checked by `has_embeddings`, and read for every match
    strides: dict[str, Stride] = {name: cast(Stride, tuple(s)) for name, s in described["strides"].items()}

    def load(name: str) -> Tensor:
        # "c" and not "r": torch takes no array that cannot be written to; nothing is written
        return torch.from_numpy(np.load(home / f"{case}.{name}.npy", mmap_mode="c"))

    maps = {name: load(name) for name in strides}
    lengths = {name: load(f"{name}{_LENGTHS}") for name in described.get("lengths", [])}
    return EncodedImage(maps, strides, cast(tuple[int, int, int], tuple(described["size"])), lengths)


def _image_bytes(folder: VolumeFolder, case: str) -> int:
    """Size of the compressed volume, which hardly ever stays when the volume changes."""
    return (folder.images / f"{case}.b2nd").stat().st_size


def _save(file: Path, values: Tensor) -> None:
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as opened:
            np.save(opened, values.numpy())
        os.replace(temporary, file)
    except OSError as error:
        raise name_file(error, file) from None
    finally:
        temporary.unlink(missing_ok=True)
