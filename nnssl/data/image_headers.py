"""The header of an image: what it says of the volume before a voxel is read, and what rules the volume out."""

from __future__ import annotations

import inspect
import json
import logging
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnssl.core.errors import BadCase, DamagedFile
from nnssl.data.pool import itk_is_quiet
from nnssl.data.voxel_files import read_nifti_header

# Of a voxel in mm: beyond these the file is in other units, or its header is damaged.
_SMALLEST_MM, _LARGEST_MM = 1e-6, 1e4
_SHEAR_DEGREES = 0.5  # that axes may be off a right angle: 3 mm at 35 cm; rounding is below 0.05
_SAME_MM, _SAME_DEGREES = 0.01, 0.05  # rounding of headers in single precision
_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # between LPS and RAS


@dataclass(frozen=True)
class Header:
    """Header of a volume.

    Args:
        file: the file.
        size: voxels along its axes: (x, y, z), with channels (x, y, z, c).
        spacing: mm along x, y and z.
        itemsize: bytes of a voxel as stored.
        scalar: whether a voxel is one real number.
        affine: (4, 4) from voxels (x, y, z) of the file to mm in RAS; None where the format has none.
        doubt: something odd that does not rule it out; else empty.
        is_tiff: whether nnU-Net's reader of TIFF files reads it.
    """

    file: Path
    size: tuple[int, ...]
    spacing: tuple[float, ...]
    itemsize: int
    scalar: bool = True
    affine: NDArray[np.float64] | None = None
    doubt: str = ""
    is_tiff: bool = False


def read_header(file: Path, reader: Callable[[], Any] | None, is_label: bool) -> Header | None:
    """Read the header with the library that nnU-Net's `reader` uses; None if only reading all of it can tell.

    Args:
        file: a regular file.
        reader: nnU-Net's class; None if unknown: the header is not judged then.
        is_label: nnU-Net's TIFF reader looks for the spacing in another file then.

    Raises:
        BadCase: the library cannot read it, or it rules the volume out.
    """
    names = [c.__name__ for c in inspect.getmro(reader)] if inspect.isclass(reader) else []
    header: Header | None
    if any(name.startswith("Nibabel") for name in names):
        header = _by_nibabel(file)
    elif "Tiff3DIO" in names:
        header = _by_tifffile(file, is_label)
    else:
        header = _by_itk(file, "SimpleITKIO" in names)
    if header is not None and reader is not None:
        _judge(header)
    return header


def _judge_spacing(spacing: Sequence[float]) -> None:
    if not all(math.isfinite(s) and s != 0 for s in spacing):
        raise BadCase(f"spacing {millimetres(spacing)} mm is not positive; mend its header")
    if not all(_SMALLEST_MM <= abs(s) <= _LARGEST_MM for s in spacing):
        raise BadCase(f"spacing {millimetres(spacing)} mm is outside of {_SMALLEST_MM:g} to {_LARGEST_MM:g} mm; mend "
                      f"its header")  # fmt: skip


def _judge(header: Header) -> None:
    """Raise BadCase for a volume that no method of this package can learn from."""
    _judge_spacing(header.spacing)
    if not header.scalar:
        raise BadCase("colours, vectors or complex numbers in its voxels; write one real number a voxel, and one file "
                      "a channel")  # fmt: skip
    if header.affine is None:
        return
    if not np.isfinite(header.affine).all():
        raise BadCase("its affine holds NaN or infinity; mend its header")
    unit = _unit_columns(header.affine)
    off = float(np.degrees(np.arcsin(np.clip(np.abs(unit.T @ unit - np.eye(3)).max(), 0, 1))))
    if off > _SHEAR_DEGREES:
        raise BadCase(f"sheared: its axes are {off:.3g} degrees off a right angle, and networks see voxels as boxes; "
                      f"resample it to a grid with right angles")  # fmt: skip


def _by_itk(file: Path, must: bool) -> Header | None:
    import SimpleITK as sitk

    nifti = read_nifti_header(file)[0] if file.name.lower().endswith((".nii", ".nii.gz")) else None
    if nifti is not None and not np.isfinite(_nifti_affine(nifti)).all():  # ITK would print it
        raise BadCase("its affine holds NaN or infinity; mend its header")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        with itk_is_quiet():
            reader.ReadImageInformation()
    except RuntimeError as error:
        if "orthonormal" in str(error):
            raise BadCase("sheared: its axes have no right angles; resample it to a grid with right angles") from error
        if must:
            raise DamagedFile(f"{str(error).strip().splitlines()[-1][:200]}") from error
        return None
    axes = min(reader.GetDimension(), 3)
    # Of a NIfTI file ITK has turned units into mm, and 0 and NaN into 1.
    spacing, doubt = reader.GetSpacing()[:3], "" if nifti is None else _nifti_spacing(nifti, axes)[1]
    cosines = np.asarray(reader.GetDirection()).reshape(reader.GetDimension(), -1)[:axes, :axes]
    affine = np.eye(4)
    with np.errstate(invalid="ignore"):  # a spacing of NaN or infinity is judged soon
        affine[:axes, :axes] = cosines * np.abs(spacing)
        affine[:axes, 3] = reader.GetOrigin()[:axes]
        affine = _FLIP @ affine
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    bits = re.search(r"(\d+)-bit", kind)
    scalar = reader.GetNumberOfComponents() == 1 and "complex" not in kind
    itemsize = (int(bits[1]) // 8 if bits else 1) * reader.GetNumberOfComponents()
    return Header(file, tuple(reader.GetSize()), tuple(spacing), itemsize, scalar, affine, doubt)


def _by_nibabel(file: Path) -> Header:
    header, _ = read_nifti_header(file)
    size = tuple(int(n) for n in header["dim"][1 : max(1, min(int(header["dim"][0]), 7)) + 1])
    spacing, doubt = _nifti_spacing(header, min(len(size), 3))
    dtype = header.get_data_dtype()
    scalar = dtype.kind in "iuf" and math.prod(size[4:]) == 1  # the fifth axis is that of vectors
    return Header(file, size, spacing, max(dtype.itemsize, 8), scalar, _nifti_affine(header), doubt)


def _nifti_spacing(header: Any, axes: int) -> tuple[tuple[float, ...], str]:
    """Spacing as stored, and a doubt if the affine differs. Libraries turn 0 and NaN into 1 silently."""
    spacing = tuple(float(s) for s in header["pixdim"][1 : axes + 1])
    _judge_spacing(spacing)
    if int(header["sform_code"]) == 0:
        return spacing, ""
    lengths = np.linalg.norm(header.get_sform()[:3, :axes], axis=0)
    ratio = np.maximum(lengths, 1e-30) / np.abs(spacing)
    text = f"its header says {millimetres(spacing)} mm a voxel, and its affine {millimetres(lengths)}"
    if not np.all((ratio > 0.5) & (ratio < 2)):
        raise BadCase(f"two spacings: {text}; mend the one that is wrong")
    return spacing, "" if np.allclose(ratio, 1, rtol=0.01) else f"{text}; nnU-Net takes the header's"


def _nifti_affine(header: Any) -> NDArray[np.float64]:
    try:
        return np.asarray(header.get_best_affine(), dtype=np.float64)
    except Exception as error:  # nibabel raises its own for wrong quaternions
        raise DamagedFile(f"its affine cannot be read ({error}); mend its header") from error


def _by_tifffile(file: Path, is_label: bool) -> Header:
    import tifffile

    said = BufferingHandler(sys.maxsize)
    log = logging.getLogger("tifffile")
    log.addHandler(said)
    propagate, log.propagate = log.propagate, False
    try:
        with tifffile.TiffFile(file) as opened:
            series = opened.series[0]
            pages = [page for page in series.pages if page is not None]
            end = max(
                (sum(p) for page in pages for p in zip(page.dataoffsets, page.databytecounts, strict=True)), default=0
            )
            colours = any(getattr(page, "samplesperpixel", 1) > 1 for page in pages)
            size, dtype = tuple(int(n) for n in reversed(series.shape)), series.dtype
    except Exception as error:  # tifffile raises its own
        raise DamagedFile(f"{str(error).splitlines()[0][:200] if str(error) else type(error).__name__}") from error
    finally:
        log.removeHandler(said)
        log.propagate = propagate
    texts = [record.getMessage() for record in said.buffer]
    broken = any("invalid page offset" in text or "corrupted" in text for text in texts)
    if broken or end > file.stat().st_size:
        raise DamagedFile("cut: its pages do not end where the file does; copy it again")
    scalar = not colours and dtype.kind in "iufb"
    return Header(file, size, _tiff_spacing(file, is_label), dtype.itemsize, scalar, is_tiff=True)


def _tiff_spacing(file: Path, is_label: bool) -> tuple[float, ...]:
    """From nnU-Net's `<case>.json` beside it, which holds (z, y, x); 1 mm without that file."""
    stem = file.name[: -len(file.suffix)]
    beside = file.with_name(f"{stem if is_label else stem[:-5]}.json")
    if not beside.is_file():
        return (1.0, 1.0, 1.0)
    try:
        spacing = json.loads(beside.read_text())["spacing"]
        z, y, x = (float(s) for s in spacing)
    except (ValueError, TypeError, KeyError) as error:
        raise BadCase(f'{beside.name} must hold three numbers, as in {{"spacing": [3.0, 1.0, 1.0]}}') from error
    return x, y, z


def _unit_columns(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, 3) directions of an affine's axes, in columns of length 1."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    unit: NDArray[np.float64] = affine[:3, :3] / np.where(lengths > 0, lengths, 1)
    return unit


def millimetres(spacing: Sequence[Any]) -> str:
    """A spacing for people."""
    return " x ".join(f"{float(s):.4g}" for s in spacing)


def array_grid(header: Header, reader: Callable[[], Any] | None) -> tuple[list[int], list[float]]:
    """Size and spacing (z, y, x) of the array that nnU-Net's `reader` makes; channels are left out."""
    size, spacing = list(header.size[:3]), [abs(s) for s in header.spacing]
    if _turns(reader) and header.affine is not None and len(size) == 3:
        from nibabel.orientations import io_orientation

        axes = [int(axis) for axis in io_orientation(header.affine)[:, 0]]
        order = [axes.index(world) for world in range(3)]
        size, spacing = [size[axis] for axis in order], [spacing[axis] for axis in order]
    return size[::-1], spacing[::-1]


def grid_difference(first: Header, other: Header, reader: Callable[[], Any] | None) -> str | None:
    """How far `other` is from `first`, in mm and degrees; None where both have the same grid.

    nnU-Net's integrity check compares the same; for readers that reorient, the reoriented grids are compared.
    """
    if first.affine is None or other.affine is None:
        return None
    if _turns(reader):
        a, b = _reoriented(first), _reoriented(other)
    else:
        a, b = np.asarray(first.affine), np.asarray(other.affine)
    distance = float(np.linalg.norm(a[:3, 3] - b[:3, 3]))
    cosines = np.sum(_unit_columns(a) * _unit_columns(b), axis=0)
    degrees = float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).max())
    found = [f"its origin is {distance:.4g} mm away"] if distance > _SAME_MM else []
    found += [f"its direction is turned by {degrees:.3g} degrees"] if degrees > _SAME_DEGREES else []
    return " and ".join(found) or None


def _turns(reader: Callable[[], Any] | None) -> bool:
    return getattr(reader, "__name__", "").endswith("WithReorient")


def _reoriented(header: Header) -> NDArray[np.float64]:
    """Affine of the volume that nnU-Net's readers turn to RAS."""
    from nibabel.orientations import inv_ornt_aff, io_orientation

    affine = np.asarray(header.affine)
    turned: NDArray[np.float64] = affine @ inv_ornt_aff(io_orientation(affine), header.size[:3])
    return turned
