"""Small volumes (10, 20, 31) of voxels of 3.1 x 0.8 x 0.7 mm on an oblique grid, and what can be wrong with a file."""

from __future__ import annotations

import gzip
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

SHAPE, SPACING = (10, 20, 31), (0.7, 0.8, 3.1)  # (z, y, x) voxels, (x, y, z) mm
_TURN = (float(np.cos(0.1)), float(np.sin(0.1)))
OBLIQUE = (_TURN[0], -_TURN[1], 0.0, _TURN[1], _TURN[0], 0.0, 0.0, 0.0, 1.0)

Fault = Callable[[Path], object]


def voxels(dtype: Any = np.int16, seed: int = 0) -> np.ndarray:
    """A body of noise around 30 in air of -1000."""
    rng = np.random.default_rng(seed)
    values = np.full(SHAPE, -1000.0)
    values[:, 3:17, 4:27] = rng.normal(30, 20, (10, 14, 23))
    return values.astype(dtype)


def labels() -> np.ndarray:
    """0 outside, 1 and 2 inside."""
    values = np.zeros(SHAPE, np.uint8)
    values[2:8, 5:15, 6:16], values[2:8, 5:15, 17:25] = 1, 2
    return values


def write(
    file: Path,
    values: np.ndarray,
    compressed: bool = True,
    spacing: tuple[float, ...] = SPACING,
    direction: tuple[float, ...] = OBLIQUE,
    origin: tuple[float, ...] = (-20.0, 15.0, 4.0),
    vectors: bool = False,
) -> Path:
    """Write values (z, y, x), vectors with their components last, to the format of the file's ending."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix in (".tif", ".tiff"):
        import tifffile

        tifffile.imwrite(file, values, compression="zlib" if compressed else None)
        stem = file.name[: -len(file.suffix)]
        beside = stem[:-5] if file.parent.name.startswith("images") else stem
        (file.parent / f"{beside}.json").write_text(json.dumps({"spacing": spacing[::-1]}))
        return file
    image = sitk.GetImageFromArray(values, isVector=vectors)
    if image.GetDimension() == 3:
        image.SetSpacing(spacing)
        image.SetDirection(direction)
        image.SetOrigin(origin)
    sitk.WriteImage(image, str(file), compressed)
    return file


def cut(part: float) -> Fault:
    """Only the first part of the file arrived."""
    return lambda file: file.write_bytes(file.read_bytes()[: int(file.stat().st_size * part)])


def flip(part: float) -> Fault:
    """Eight bytes are other ones."""

    def change(file: Path) -> None:
        content = bytearray(file.read_bytes())
        at = int(len(content) * part)
        content[at : at + 8] = bytes(b ^ 0xFF for b in content[at : at + 8])
        file.write_bytes(content)

    return change


def wrong_check_sum(file: Path) -> None:
    """All bytes of a .gz are right but for those of its CRC."""
    content = bytearray(file.read_bytes())
    content[-8] ^= 0xFF
    file.write_bytes(content)


def nifti_field(*edits: tuple[int, str, float]) -> Fault:
    """Put numbers into the header of a NIfTI file: offset, struct format, value."""

    def change(file: Path) -> None:
        packed = file.name.endswith(".gz")
        content = bytearray(gzip.decompress(file.read_bytes()) if packed else file.read_bytes())
        for offset, kind, value in edits:
            struct.pack_into(kind, content, offset, value)
        file.write_bytes(gzip.compress(bytes(content)) if packed else bytes(content))

    return change


def text_field(old: bytes, new: bytes) -> Fault:
    """Put another text into the header of a MetaImage or NRRD file."""

    def change(file: Path) -> None:
        content = file.read_bytes()
        assert old in content
        file.write_bytes(content.replace(old, new, 1))

    return change


def affine(matrix: list[list[float]]) -> Fault:
    """Give a NIfTI file an sform with these three columns and no qform."""
    rows = [(280 + 16 * row + 4 * column, "<f", matrix[row][column]) for row in range(3) for column in range(3)]
    return nifti_field((252, "<h", 0), (254, "<h", 2), *rows)


def fifo(file: Path) -> None:
    """A FIFO in the place of the file: whoever opens it waits for ever."""
    file.unlink()
    os.mkfifo(file)


def link_to_nothing(file: Path) -> None:
    """A symbolic link whose target was removed."""
    file.unlink()
    file.symlink_to("nowhere")


def voxel(value: float, dtype: Any = np.float32) -> np.ndarray:
    """The volume with one voxel of another value."""
    values = voxels(dtype)
    values[4, 8, 9] = value
    return values


def geometry(**changes: Any) -> Fault:
    """Set `Spacing`, `Origin` or `Direction` of a file to other ones."""

    def change(file: Path) -> None:
        image = sitk.ReadImage(str(file))
        for name, value in changes.items():
            getattr(image, f"Set{name}")(value)
        sitk.WriteImage(image, str(file))

    return change
