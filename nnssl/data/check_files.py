"""The files of a case, checked before nnU-Net reads them: headers, sizes, and every voxel once, in little memory.

ITK reads a `.nii.gz` that was cut as far as it goes and fills the rest with zeros, ignores a wrong check sum, and turns
NaN into zero.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnssl.core.errors import BadCase, DamagedFile
from nnssl.core.system import gigabytes, memory_limit, printable, why_no_file, why_not_utf8
from nnssl.data.image_headers import Header, array_grid, grid_difference, millimetres, read_header
from nnssl.data.voxel_files import BLOCK, Voxels, find_voxels, inflated

LARGEST = 1e12  # of a voxel's magnitude: sums of squares of larger ones leave float32, which networks compute in
NON_FINITE = "non-finite values (NaN or infinity)"
_SURPLUS = 1 << 12  # bytes that may follow the voxels; writers pad to the end of a block


def refuse_too_large(headers: Sequence[Header]) -> None:
    """Raise BadCase where a case does not fit into memory, as stored and as nnU-Net's float32 together."""
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
    """Raise BadCase where nnU-Net's resampling of a case to the plans' spacing needs more memory than there is.

    nnU-Net holds the image twice, a copy in double precision, the result, and one channel of it in double precision.

    Args:
        size: voxels (z, y, x), in the plans' order of axes.
        spacing: mm along the same axes.
        target: the plans' spacing; nothing is compared where it is None, holds None or has two axes.
        channels: of the image.
        image: (C, Z, Y, X) in that order, where it is known: nnU-Net crops it to its nonzero part first.
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


def _resampled(
    size: Sequence[int], spacing: Sequence[float], target: Sequence[Any], channels: int
) -> tuple[list[int], int]:
    """Voxels after nnU-Net's resampling, and the bytes that it takes."""
    from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

    shape = [int(n) for n in compute_new_shape(list(size), list(spacing), list(target))]
    before, after = math.prod(size), math.prod(shape)
    return shape, 16 * channels * before + (4 * channels + 8) * after


@dataclass(frozen=True)
class CheckedFiles:
    """Files that nnU-Net can read.

    Args:
        headers: of the images and of the label, as far as the formats are known.
        complete: whether the voxels were checked too; those of unknown formats show only when they are read.
        warnings: where a channel or the label is placed elsewhere than the first channel.
    """

    headers: list[Header]
    complete: bool
    warnings: tuple[str, ...]


def check_files(images: Sequence[str], reader: Callable[[], Any] | None, label: str | None = None) -> CheckedFiles:
    """Check files before nnU-Net reads them: each is opened for its header, and gone through once in small blocks.

    Args:
        images: of one case, one a channel.
        reader: nnU-Net's class; None where it is not known yet: only what reading needs is judged then.
        label: of the case.

    Raises:
        BadCase: with the file and the reason: it cannot be opened, is cut, damaged or too large for the machine, its
            voxels or grid cannot be used, or the channels do not fit together.
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
    """Raise BadCase where nnU-Net's reader would refuse the channels of a case as those of different volumes."""
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
            yield f"{header.file.name} is elsewhere than {headers[0].file.name}: {apart}; check that they overlap"


@contextmanager
def _naming(file: str, what: str) -> Iterator[None]:
    """Name the file in the errors of a block."""
    name = printable(Path(file).name)
    try:
        yield
    except OSError as error:
        raise DamagedFile(f"unreadable {what}: {name}: it cannot be opened ({error.strerror or error})") from error
    except DamagedFile as error:
        raise DamagedFile(f"unreadable {what}: {name}: {error}") from error
    except BadCase as error:
        raise BadCase(f"{error} ({what} {name})") from error


def check_size(voxels: Voxels) -> None:
    """Compare what the header promises with the size of the file; nothing is read.

    Raises:
        DamagedFile: it holds less, or more; or the file with the voxels is not there.
    """
    if (reason := why_no_file(voxels.file)) is not None:
        raise DamagedFile(f"its voxels are in {voxels.file.name}, which {reason}")
    promised = voxels.count * voxels.dtype.itemsize
    stored = os.path.getsize(voxels.file) - voxels.start
    if not voxels.compressed:
        _compare(stored - voxels.skip, promised)
    elif promised + voxels.skip > max(stored, 0) * 1100 + _SURPLUS:  # deflate cannot do better than 1032 to 1
        raise DamagedFile(f"cut: its header promises {promised:,} bytes of voxels, and the compressed file has "
                          f"{stored:,}; copy it again")  # fmt: skip


def check_voxels(voxels: Voxels) -> None:
    """Go through the voxels once, in blocks of a mebibyte; uncompressed integers need no check.

    Raises:
        BadCase: cut, damaged, longer than promised, or with values that are no numbers or larger than `LARGEST`.
        OSError: the file cannot be read.
    """
    if voxels.compressed or voxels.dtype.kind == "f" or (voxels.slope, voxels.intercept) != (1.0, 0.0):
        _go_through(voxels, voxels.count * voxels.dtype.itemsize)


def check_tiff(file: Path) -> None:
    """The same for a TIFF, which must be decoded for it.

    Raises:
        BadCase: damaged, or with values that are no numbers or larger than `LARGEST`.
    """
    import tifffile

    try:
        values = tifffile.imread(file)
    except Exception as error:  # tifffile and its codecs raise their own
        raise DamagedFile(f"damaged: {(str(error).splitlines() or [type(error).__name__])[-1][:200]}; copy it again"
                          ) from error  # fmt: skip
    if values.dtype.kind == "f" and values.size:
        check_range(float(values.min()), float(values.max()))


def check_range(lowest: float, highest: float) -> None:
    """Raise BadCase unless the extremes of a volume (NaN where it holds NaN) are finite and small enough."""
    if not np.isfinite([lowest, highest]).all():
        raise BadCase(NON_FINITE)
    if max(-lowest, highest) > LARGEST:
        raise BadCase(f"a voxel of {max(lowest, highest, key=abs):.3g}: values beyond {LARGEST:g} are no intensities; "
                      f"mend or clip them")  # fmt: skip


def _go_through(voxels: Voxels, promised: int) -> None:
    got, rest, skip = 0, b"", voxels.skip
    try:
        with open(voxels.file, "rb") as handle:
            handle.seek(voxels.start)
            for block in inflated(handle) if voxels.compressed else iter(lambda: handle.read(BLOCK), b""):
                skipped = min(skip, len(block))
                skip, got = skip - skipped, got + len(block) - skipped
                rest = _check_values(rest + block[skipped : len(block) - max(got - promised, 0)], voxels)
                if got > promised + _SURPLUS:
                    break  # do not read all of a surplus that may be huge
    except EOFError as error:
        if got >= promised:
            raise DamagedFile("damaged: its compressed data goes on after its voxels and has no end; copy it "
                              "again") from error  # fmt: skip
        raise DamagedFile(f"cut: it ends after {got:,} of the {promised:,} bytes of voxels that its header promises; "
                          f"copy it again") from error  # fmt: skip
    except zlib.error as error:
        raise DamagedFile(f"damaged: its compressed data is wrong after {got:,} of {promised:,} bytes "
                          f"({error}); copy it again") from error  # fmt: skip
    _compare(got, promised)


def _compare(got: int, promised: int) -> None:
    if got < promised:
        raise DamagedFile(f"cut: it holds {max(got, 0):,} of the {promised:,} bytes of voxels that its header "
                          f"promises; copy it again")  # fmt: skip
    if got > promised + _SURPLUS:
        raise DamagedFile(f"damaged: it holds more than the {promised:,} bytes of voxels that its header promises; "
                          f"copy or export it again")  # fmt: skip


def _check_values(data: bytes, voxels: Voxels) -> bytes:
    """Raise BadCase for values that are no numbers; return the bytes of the last voxel if it is incomplete."""
    if voxels.dtype.kind != "f" and (voxels.slope, voxels.intercept) == (1.0, 0.0):
        return b""
    whole = len(data) // voxels.dtype.itemsize
    if whole:
        values = np.frombuffer(data, voxels.dtype, whole)
        with np.errstate(over="ignore"):
            ends = np.array([values.min(), values.max()], dtype=np.float64) * voxels.slope + voxels.intercept
        check_range(float(ends.min()), float(ends.max()))
    return data[whole * voxels.dtype.itemsize :]
