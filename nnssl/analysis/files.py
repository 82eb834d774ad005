"""Files of embeddings and maps: blosc2 and NIfTI in the geometry of the image, and tables of vectors."""

from __future__ import annotations

import errno
import io
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnssl.core.errors import UserError
from nnssl.core.files import replace_file
from nnssl.core.names import csv_table
from nnssl.features.geometry import LPS_TO_RAS, Floats, ImageGeometry
from nnssl.features.images import PreparedImage
from nnssl.networks.pyramid import Stride

ENDINGS = {"blosc2": ".b2nd", "nifti": ".nii.gz"}
_CHUNK = 2**25  # bytes
_BLOCK = 2**18
_NO_ROOM = 2**26  # bytes: a disk with less is full
_RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])  # NIfTI's own type of colour images

Shape = tuple[int, int, int, int]
Fill = Callable[[Any], Any]
CaseVectors = dict[str, NDArray[np.float32]]  # (D,) by case


def is_dense_map(file: Path) -> bool:
    """Whether `write_dense` wrote a file, by the file's own notes."""
    try:
        if file.name.endswith(ENDINGS["blosc2"]):
            import blosc2

            array: Any = blosc2.open(urlpath=str(file), mode="r")  # the notes need it open
            return "nnssl" in array.schunk.vlmeta
        import nibabel

        header: Any = nibabel.load(file).header
        return bytes(header["descrip"]).rstrip(b"\0").endswith(b" dense")
    except Exception:  # every library raises its own: an unreadable file is none of ours
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
        notes: for the file's header, JSON types.
        tile: (Z, Y, X) cells written at a time, about.

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
    """Halve the longest axis of a shape until it has at most `most` bytes; the channels stay together."""
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
        of_file = affine @ np.eye(4)[[2, 1, 0, 3]]  # from (x, y, z)
        _save_nifti(values.transpose(3, 2, 1, 0), of_file, file, header)
    finally:
        scratch.unlink(missing_ok=True)


def write_on_image(cells: NDArray[Any], stride: Sequence[int], image: PreparedImage, file: Path) -> None:
    """Write a map of the preprocessed grid as NIfTI on the voxels of the image's own file.

    Args:
        cells: (1, Z, Y, X) values, written as float32; or (3, Z, Y, X) uint8, written as NIfTI's RGB24.
        stride: (z, y, x) voxels a cell.
        image: that was preprocessed.
        file: to write.

    Raises:
        UserError: SimpleITK does not read the image.
    """
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(image.file)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise UserError(f"{image.file} has a format without voxels in space; give a NIfTI, NRRD or MHA file") from error
    values = image.geometry.onto_file(cells, stride, reader.GetSize()[:3])
    if len(cells) == 3:
        values = np.ascontiguousarray(values.astype(np.uint8)).view(_RGB)[..., 0]
    else:
        values = values[..., 0].astype(np.float32)
    temporary = file.with_name(f".writing_{file.name}")  # nibabel goes by the ending
    _save_nifti(values, image.geometry.file_affine, temporary)
    temporary.replace(file)


def _save_nifti(values: NDArray[Any], affine: Floats, file: Path, header: Any = None) -> None:
    """Write an array (x, y, z, ...) whose affine leads to LPS; NIfTI has RAS."""
    import nibabel

    of_file = LPS_TO_RAS @ affine
    image = nibabel.Nifti1Image(values, of_file, header)
    image.set_sform(of_file, code=1)
    image.set_qform(of_file, code=1)
    nibabel.save(image, str(file))


def read_vectors(file: Path) -> CaseVectors:
    """CaseVectors by case; nothing where there is no file. Raises UserError where it is damaged."""
    if not file.is_file():
        return {}
    try:
        with np.load(file) as content:
            return dict(zip(map(str, content["cases"]), content["vectors"], strict=True))
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError) as error:
        raise UserError(f"{file} is damaged; remove it, and its vectors are made anew") from error


def write_vectors(folder: Path, vectors: CaseVectors, boundaries: list[int], as_csv: bool, finest: int = 0) -> None:
    """Write `vectors.npz`, and `vectors.csv` if asked for; each in one piece, cases sorted by name.

    Args:
        folder: where.
        vectors: (D,) by case, one at least.
        boundaries: first number of each level's part, and D.
        as_csv: whether to write the table: a line a case, its name first.
        finest: number of the first level.
    """
    names = sorted(vectors)
    rows = np.stack([vectors[name] for name in names]).astype(np.float32)
    content = io.BytesIO()
    np.savez(content, vectors=rows, cases=np.array(names), levels=np.array(boundaries))
    replace_file(folder / "vectors.npz", content.getvalue())
    if as_csv:
        lines = ([name, *(f"{value:.9g}" for value in row)] for name, row in zip(names, rows, strict=True))
        table = csv_table(["case", *_columns(boundaries, finest)], lines)
        replace_file(folder / "vectors.csv", table.encode())


def _columns(boundaries: list[int], finest: int) -> list[str]:
    """Such as level0_0, level0_1, level1_0: level and channel."""
    parts = enumerate(pairwise(boundaries), start=finest)
    return [f"level{level}_{channel}" for level, (first, last) in parts for channel in range(last - first)]
