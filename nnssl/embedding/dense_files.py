"""Dense maps as files: blosc2 arrays as nnU-Net's preprocessed volumes, or NIfTI images for viewers."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.errors import UserError
from nnssl.matching.geometry import Floats, ImageGeometry
from nnssl.networks.pyramid import Stride

ENDINGS = {"blosc2": ".b2nd", "nifti": ".nii.gz"}
_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # between LPS and RAS, which NIfTI has
_CHUNK = 2**25  # bytes
_BLOCK = 2**18
_NO_ROOM = 2**26  # bytes: a disk with less is full

Shape = tuple[int, int, int, int]
Fill = Callable[[Any], Any]


def is_dense_map(file: Path) -> bool:
    """Whether `write_dense` wrote a file, by what it says of itself."""
    try:
        if file.name.endswith(ENDINGS["blosc2"]):
            import blosc2

            array: Any = blosc2.open(urlpath=str(file), mode="r")  # which the notes do not outlive
            return "nnssl" in array.schunk.vlmeta
        import nibabel

        header: Any = nibabel.load(file).header
        return bytes(header["descrip"]).rstrip(b"\0").endswith(b" dense")
    except Exception:  # every library raises its own: a file that cannot be read is none
        return False


def cell_affine(geometry: ImageGeometry, stride: Stride) -> Floats:
    """(4, 4) from cells (z, y, x) to the world, (x, y, z) in mm, LPS; the centre of cell c is voxel (c+0.5)s-0.5."""
    cells = np.diag([*map(float, stride), 1.0])
    cells[:3, 3] = 0.5 * np.asarray(stride) - 0.5
    whole: Floats = geometry.affine @ cells
    return whole


def describe_geometry(affine: Floats) -> dict[str, Any]:
    """Spacing, origin and direction of an array's grid in the order of SimpleITK (x, y, z), and the affine; plain."""
    columns = affine[:3, :3][:, ::-1]
    spacing = np.linalg.norm(columns, axis=0)
    return {
        "affine_zyx_to_lps": affine.tolist(),
        "spacing": spacing.tolist(),
        "origin": affine[:3, 3].tolist(),
        "direction": (columns / spacing).ravel().tolist(),
    }


def write_dense(
    file: Path, file_format: str, shape: Shape, affine: Floats, fill: Fill, notes: dict[str, Any], tile: Stride
) -> None:
    """Write the dense map of a case; the file is whole or not there.

    Args:
        file: to write.
        file_format: `blosc2` or `nifti`.
        shape: (K, Z, Y, X) of the map.
        affine: from its cells to the world, LPS.
        fill: writes the map into an array-like of this shape, part by part.
        notes: what else the file says, JSON types.
        tile: (Z, Y, X) cells that are written at a time, about.

    Raises:
        OSError: with errno ENOSPC where the disk is full.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}{ENDINGS[file_format]}")
    try:
        if file_format == "blosc2":
            _write_blosc2(temporary, shape, fill, {**notes, **describe_geometry(affine)}, tile)
        else:
            _write_nifti(temporary, shape, affine, fill, notes)
        os.replace(temporary, file)
    except RuntimeError as error:  # blosc2 does not say why it could not write
        if shutil.disk_usage(file.parent).free < _NO_ROOM:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _write_blosc2(file: Path, shape: Shape, fill: Fill, notes: dict[str, Any], tile: Stride) -> None:
    import blosc2

    chunks = _halved([shape[0], *map(min, tile, shape[1:])], _CHUNK)
    array: Any = blosc2.zeros(
        shape,
        dtype=np.float16,
        urlpath=str(file),
        mode="w",
        chunks=chunks,
        blocks=_halved(chunks, _BLOCK),
        cparams={"codec": blosc2.Codec.ZSTD, "clevel": 5, "nthreads": 1},
    )
    fill(array)
    array.schunk.vlmeta["nnssl"] = notes


def _halved(shape: list[int], most: int) -> list[int]:
    """A shape of at most so many bytes: the longest axis is halved until it fits; the channels stay together."""
    sides = list(shape)
    while 2 * int(np.prod(sides)) > most and max(sides[1:]) > 1:
        longest = 1 + int(np.argmax(sides[1:]))
        sides[longest] = -(-sides[longest] // 2)
    return sides


def _write_nifti(file: Path, shape: Shape, affine: Floats, fill: Fill, notes: dict[str, Any]) -> None:
    """NIfTI knows no float16: the values are written as float32, a component at a time."""
    import nibabel

    scratch = file.with_name(f"{file.name}.npy")
    needed = 2 * int(np.prod(shape))
    free = shutil.disk_usage(file.parent).free
    if free < needed + _NO_ROOM:
        raise UserError(f"{file.parent} has {free / 2**30:.1f} GiB left, and this map of {shape[0]} components takes "
                        f"{needed / 2**30:.1f}; set -components 3 or so, or a coarser -level")  # fmt: skip
    try:
        values = np.lib.format.open_memmap(scratch, mode="w+", dtype=np.float16, shape=shape)
        fill(values)
        header = nibabel.Nifti1Header()
        header.set_data_dtype(np.float32)
        header.set_xyzt_units("mm")
        header["descrip"] = f"{notes['method']} {notes['what']}".encode()[:79]
        of_file = _FLIP @ affine @ np.eye(4)[[2, 1, 0, 3]]  # from (x, y, z)
        image = nibabel.Nifti1Image(values.transpose(3, 2, 1, 0), of_file, header)
        image.set_sform(of_file, code=1)
        image.set_qform(of_file, code=1)
        nibabel.save(image, str(file))
    finally:
        scratch.unlink(missing_ok=True)
