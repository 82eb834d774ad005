"""Whether a file holds the voxels that its header promises: all of them, undamaged, finite; in little memory.

ITK reads a `.nii.gz` that was cut as far as it goes and fills the rest with zeros, ignores a wrong check sum, and turns
NaN into zero. Therefore a file is gone through once in small blocks before it is read.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np

from nnssl.core.errors import BadCase, DamagedFile
from nnssl.core.system import why_no_file
from nnssl.data.voxel_files import BLOCK, Voxels, inflated

LARGEST = 1e12  # of a voxel's magnitude: sums of squares of larger ones leave float32, which networks compute in
NON_FINITE = "non-finite values (NaN or infinity)"
_SURPLUS = 1 << 12  # bytes that may follow the voxels; writers pad to the end of a block


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
    """Go through the voxels once, in blocks of a mebibyte; integers that are not compressed need no look.

    Raises:
        BadCase: cut, damaged, longer than promised, or with values that are no numbers or larger than `LARGEST`.
        OSError: the file cannot be read.
    """
    if voxels.compressed or voxels.dtype.kind == "f" or (voxels.slope, voxels.intercept) != (1.0, 0.0):
        _go_through(voxels, voxels.count * voxels.dtype.itemsize)


def check_tiff(file: Path) -> None:
    """The same for a TIFF, which has to be decoded for it.

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
    """Raise BadCase unless the extremes of a volume, NaN where it holds NaN, are numbers to compute with."""
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
                    break  # whatever it is, it shall not be read to its end
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
    """Raise BadCase for values that are no numbers; the bytes of a voxel that has not come completely."""
    if voxels.dtype.kind != "f" and (voxels.slope, voxels.intercept) == (1.0, 0.0):
        return b""
    whole = len(data) // voxels.dtype.itemsize
    if whole:
        values = np.frombuffer(data, voxels.dtype, whole)
        with np.errstate(over="ignore"):
            ends = np.array([values.min(), values.max()], dtype=np.float64) * voxels.slope + voxels.intercept
        check_range(float(ends.min()), float(ends.max()))
    return data[whole * voxels.dtype.itemsize :]
