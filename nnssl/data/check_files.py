"""The files of a case, checked before nnU-Net reads them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnssl.core.errors import BadCase, DamagedFile
from nnssl.core.system import gigabytes, memory_limit, printable, why_no_file, why_not_utf8
from nnssl.data.image_headers import Header, millimetres, read_header, unit_columns
from nnssl.data.voxel_data import check_size, check_tiff, check_voxels
from nnssl.data.voxel_files import Voxels, find_voxels

_SAME_MM, _SAME_DEGREES = 0.01, 0.05  # rounding of headers in single precision


def array_grid(header: Header, reader: Callable[[], Any] | None) -> tuple[list[int], list[float]]:
    """Size and spacing (z, y, x) of the array that nnU-Net's `reader` makes; channels are left out."""
    size, spacing = list(header.size[:3]), [abs(s) for s in header.spacing]
    if _turns(reader) and header.affine is not None and len(size) == 3:
        from nibabel.orientations import io_orientation

        axes = [int(axis) for axis in io_orientation(header.affine)[:, 0]]
        order = [axes.index(world) for world in range(3)]
        size, spacing = [size[axis] for axis in order], [spacing[axis] for axis in order]
    return size[::-1], spacing[::-1]


def refuse_too_large(headers: Sequence[Header]) -> None:
    """Raise BadCase where the volumes of a case, as stored and as the float32 that nnU-Net makes, exceed the memory."""
    needed = sum(math.prod(h.size) * (h.itemsize + 4) for h in headers)
    if needed > memory_limit():
        raise BadCase(f"too large: {'x'.join(map(str, headers[0].size))} voxels take {gigabytes(needed)}, and this "
                      f"machine has {gigabytes(memory_limit())}; mend its header, or use a larger one")  # fmt: skip


def refuse_too_large_at(
    size: Sequence[int],
    spacing: Sequence[float],
    target: Sequence[float | None] | None,
    channels: int,
    image: NDArray[np.float32] | None = None,
) -> None:
    """Raise BadCase where nnU-Net's resampling of a case to the plans' spacing takes more memory than there is.

    nnU-Net holds the image twice, a copy in double precision, the outcome and one channel of it in double precision.

    Args:
        size: voxels (z, y, x), in the plans' order of axes.
        spacing: mm along the same axes.
        target: the plans' spacing; None, with None in it or of two axes where there is nothing to compare.
        channels: of the image.
        image: (C, Z, Y, X) in that order; nnU-Net crops it to what is not zero first, where it is known.
    """
    if target is None or None in target or not len(target) == len(size) == 3:
        return
    shape, needed = _resampled(size, spacing, target, channels)
    if needed > memory_limit() and image is not None:
        size = [int(np.ptp(np.flatnonzero(image.any(tuple({0, 1, 2, 3} - {axis}))))) + 1 for axis in (1, 2, 3)]
        shape, needed = _resampled(size, spacing, target, channels)
    text = (f"{'x'.join(map(str, shape))} voxels at the plans' spacing of {millimetres(target)} mm, from its own of "
            f"{millimetres(spacing)} mm")  # fmt: skip
    if min(shape) < 1:
        raise BadCase(f"too small: {text}; mend the spacing in its header")
    if needed > memory_limit():
        raise BadCase(f"too large: {text}, take {gigabytes(needed)}, and this machine has {gigabytes(memory_limit())}; "
                      f"mend the spacing in its header, or use a larger machine")  # fmt: skip


def grid_difference(first: Header, other: Header, reader: Callable[[], Any] | None) -> str | None:
    """How `other` lies elsewhere than `first`, in mm and degrees; None where both lie on the same voxels.

    nnU-Net's integrity check compares the same things; readers that reorient compare what they make of the files.
    """
    if first.affine is None or other.affine is None:
        return None
    if _turns(reader):
        a, b = _reoriented(first), _reoriented(other)
    else:
        a, b = np.asarray(first.affine), np.asarray(other.affine)
    distance = float(np.linalg.norm(a[:3, 3] - b[:3, 3]))
    cosines = np.sum(unit_columns(a) * unit_columns(b), axis=0)
    degrees = float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).max())
    found = [f"its origin is {distance:.4g} mm away"] if distance > _SAME_MM else []
    found += [f"its direction is turned by {degrees:.3g} degrees"] if degrees > _SAME_DEGREES else []
    return " and ".join(found) or None


def _turns(reader: Callable[[], Any] | None) -> bool:
    return getattr(reader, "__name__", "").endswith("WithReorient")


def _resampled(
    size: Sequence[int], spacing: Sequence[float], target: Sequence[Any], channels: int
) -> tuple[list[int], int]:
    """Voxels after nnU-Net's resampling, and the bytes that it takes."""
    from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

    shape = [int(n) for n in compute_new_shape(list(size), list(spacing), list(target))]
    before, after = math.prod(size), math.prod(shape)
    return shape, 16 * channels * before + (4 * channels + 8) * after


def _reoriented(header: Header) -> NDArray[np.float64]:
    """Affine of the volume that nnU-Net's readers which turn it towards RAS make."""
    from nibabel.orientations import inv_ornt_aff, io_orientation

    affine = np.asarray(header.affine)
    turned: NDArray[np.float64] = affine @ inv_ornt_aff(io_orientation(affine), header.size[:3])
    return turned


@dataclass(frozen=True)
class CheckedFiles:
    """Files that nnU-Net can read.

    Args:
        headers: of the images and of the label, as far as the formats are known.
        complete: whether the voxels were checked too: of a format that is not known, only reading can tell.
        warnings: where a channel or the label lies elsewhere than the first channel.
    """

    headers: list[Header]
    complete: bool
    warnings: tuple[str, ...]


def check_files(images: Sequence[str], reader: Callable[[], Any] | None, label: str | None = None) -> CheckedFiles:
    """Check files before nnU-Net reads them: each is opened for its header, and gone through once in small blocks.

    Args:
        images: of one case, one a channel.
        reader: nnU-Net's class; None where it is not known yet, so that only what is needed to read them is judged.
        label: of the case.

    Raises:
        BadCase: with the file and the reason: none that can be opened, cut, damaged, too large for the machine, with
            voxels or a grid that cannot be used, or channels that do not fit together.
    """
    named = [(str(file), "image") for file in images] + ([(label, "label")] if label is not None else [])
    found = [_check_header(file, what, reader) for file, what in named]
    headers = [header for header, _ in found]
    known = [header for header in headers if header is not None]
    if known:
        refuse_too_large(known)
    for (file, what), (header, voxels) in zip(named, found, strict=True):
        with _naming(file, what):
            if voxels is not None:
                check_voxels(voxels)
            elif header is not None and header.is_tiff:
                check_tiff(Path(file))
    complete = all(voxels is not None or (header is not None and header.is_tiff) for header, voxels in found)
    _check_channels([header for header in headers[: len(images)] if header is not None], reader)
    return CheckedFiles(known, complete, tuple(_warnings(headers, reader)))


def _check_header(file: str, what: str, reader: Callable[[], Any] | None) -> tuple[Header | None, Voxels | None]:
    with _naming(file, what):
        if (reason := why_not_utf8(file) or why_no_file(file)) is not None:
            raise DamagedFile(f"it {reason}")
        voxels = find_voxels(Path(file))  # before another library meets a damaged header
        if voxels is not None:
            check_size(voxels)
        return read_header(Path(file), reader, is_label=what == "label"), voxels


def _check_channels(headers: Sequence[Header], reader: Callable[[], Any] | None) -> None:
    """Raise BadCase where nnU-Net's reader would find that the channels of a case are no channels of one volume."""
    grids = [array_grid(header, reader) for header in headers]
    for size, spacing in grids[1:]:
        if size != grids[0][0]:
            raise BadCase("channels of different shapes")
        if not np.allclose(grids[0][1], spacing):
            raise BadCase("channels of different spacings")


def _warnings(headers: Sequence[Header | None], reader: Callable[[], Any] | None) -> Iterator[str]:
    for header in headers:
        if header is not None and header.doubt:
            yield f"{header.file.name}: {header.doubt}"
    for header in headers[1:]:
        if headers[0] is not None and header is not None and (apart := grid_difference(headers[0], header, reader)):
            yield f"{header.file.name} lies elsewhere than {headers[0].file.name}: {apart}; check that they overlap"


@contextmanager
def _naming(file: str, what: str) -> Iterator[None]:
    """Let what is wrong with a file say which one it is."""
    name = printable(Path(file).name)
    try:
        yield
    except OSError as error:
        raise DamagedFile(f"unreadable {what}: {name}: it cannot be opened ({error.strerror or error})") from error
    except DamagedFile as error:
        raise DamagedFile(f"unreadable {what}: {name}: {error}") from error
    except BadCase as error:
        raise BadCase(f"{error} ({what} {name})") from error
