"""Whether a file holds the voxels that its header promises: all of them, undamaged, finite; in little memory.

ITK reads a `.nii.gz` that was cut as far as it goes and fills the rest with zeros, ignores a wrong check sum, and turns
NaN into zero. Therefore a file is gone through once in small blocks before it is read.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nnssl.core.listing import why_no_file
from nnssl.errors import BadCase, DamagedFile

LARGEST = 1e12  # of a voxel's magnitude: sums of squares of larger ones leave float32, which networks compute in
NON_FINITE = "non-finite values (NaN or infinity)"
_BLOCK = 1 << 20  # bytes
_SURPLUS = 1 << 12  # bytes that may follow the voxels; writers pad to the end of a block
_GZIP = b"\x1f\x8b"
_AUTOMATIC = 47  # zlib's wbits: gzip or zlib by the first bytes, with their check sums
_META_TYPES = {"CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "LONG": "i4",
               "ULONG": "u4", "LONG_LONG": "i8", "ULONG_LONG": "u8", "FLOAT": "f4", "DOUBLE": "f8"}  # fmt: skip
_NRRD_TYPES = {"signed char": "i1", "int8": "i1", "int8_t": "i1", "uchar": "u1", "unsigned char": "u1", "uint8": "u1",
               "uint8_t": "u1", "short": "i2", "short int": "i2", "signed short": "i2", "int16": "i2", "int16_t": "i2",
               "ushort": "u2", "unsigned short": "u2", "uint16": "u2", "uint16_t": "u2", "int": "i4",
               "signed int": "i4", "int32": "i4", "int32_t": "i4", "uint": "u4", "unsigned int": "u4", "uint32": "u4",
               "uint32_t": "u4", "long long": "i8", "int64": "i8", "int64_t": "i8", "uint64": "u8", "uint64_t": "u8",
               "unsigned long long": "u8", "float": "f4", "double": "f8"}  # fmt: skip
_GIPL_TYPES = {7: "i1", 8: "u1", 15: "i2", 16: "u2", 31: "i4", 32: "u4", 64: "f4", 65: "f8"}


@dataclass(frozen=True)
class Voxels:
    """Where a file keeps its voxels.

    Args:
        file: which may be another one than that of the header.
        dtype: of a voxel as stored.
        count: numbers that the header promises.
        start: byte at which the data begins.
        skip: bytes of the (decompressed) data before the first voxel.
        compressed: whether the data is a gzip or zlib stream.
        slope, intercept: a value is slope * voxel + intercept.
    """

    file: Path
    dtype: np.dtype[Any]
    count: int
    start: int = 0
    skip: int = 0
    compressed: bool = False
    slope: float = 1.0
    intercept: float = 0.0


def find_voxels(file: Path) -> Voxels | None:
    """Where `file` keeps its voxels, by its header; None for a format, or a variant of one, that is not known here.

    Raises:
        BadCase: the header cannot be read.
        OSError: the file cannot be opened.
    """
    name = file.name.lower()
    try:
        if name.endswith((".nii", ".nii.gz")):
            return _of_nifti(file)
        if name.endswith((".mha", ".mhd")):
            return _of_meta_image(file)
        if name.endswith((".nrrd", ".nhdr")):
            return _of_nrrd(file)
        return _of_gipl(file) if name.endswith(".gipl") else None
    except (KeyError, ValueError, IndexError, OverflowError, EOFError, zlib.error) as error:
        raise DamagedFile(f"damaged: its header cannot be read ({_short(error)}); copy or export it again") from error


def check_voxels(voxels: Voxels) -> None:
    """Go through the voxels once, in blocks of a mebibyte; where integers are not compressed, look at the size alone.

    Raises:
        BadCase: cut, damaged, longer than promised, or with values that are no numbers or larger than `LARGEST`.
        OSError: the file cannot be read.
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
    if voxels.compressed or voxels.dtype.kind == "f" or (voxels.slope, voxels.intercept) != (1.0, 0.0):
        _go_through(voxels, promised)


def read_nifti_header(file: Path) -> Any:
    """nibabel's header of a NIfTI file as it is stored: nibabel and ITK mend the spacing while they read, silently.

    Raises:
        BadCase: it is no NIfTI header.
        OSError: the file cannot be opened.
    """
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    with open(file, "rb") as handle:
        compressed = _begins(handle, _GZIP)
        try:
            start = b"".join(_first(_inflated(handle), 540)) if compressed else handle.read(540)
        except (EOFError, zlib.error) as error:
            raise DamagedFile(
                f"damaged: its header cannot be read ({_short(error)}); copy or export it again"
            ) from error
    for kind, size, magic in ((Nifti1Header, 348, start[344:348]), (Nifti2Header, 540, start[4:8])):
        if len(start) >= size and size.to_bytes(4, "little") in (start[:4], start[3::-1]) and magic[:2] == b"n+":
            return kind(start[:size], check=False)
    raise DamagedFile("damaged: it does not begin as a NIfTI file does; copy or export it again")


def _of_nifti(file: Path) -> Voxels:
    from nibabel.nifti1 import data_type_codes

    header = read_nifti_header(file)
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite(slope) or slope == 0:  # "not scaled", for nibabel and ITK
        slope, intercept = 1.0, 0.0
    size = [int(n) for n in header["dim"][1 : int(header["dim"][0]) + 1]]
    offset = int(header["vox_offset"]) or header.sizeof_hdr + 4
    if not size or min(size) < 1 or int(header["dim"][0]) > 7 or offset < header.sizeof_hdr:
        raise ValueError(f"{'x'.join(map(str, size)) or 'no'} voxels from byte {offset} on")
    if int(header["datatype"]) not in data_type_codes.value_set():
        raise ValueError(f"voxels of the unknown type {int(header['datatype'])}")
    with open(file, "rb") as handle:
        compressed = _begins(handle, _GZIP)
    dtype = header.get_data_dtype()
    return Voxels(file, dtype, _product(size), 0, offset, compressed, slope, intercept if np.isfinite(intercept) else 0)


def _of_meta_image(file: Path) -> Voxels | None:
    with open(file, "rb") as handle:
        fields: dict[str, str] = {}
        while "ElementDataFile" not in fields:
            line = handle.readline(1 << 16)
            if not line or b"=" not in line:
                raise ValueError("it does not say where its voxels are")
            key, _, value = line.decode("latin-1").partition("=")
            fields[key.strip()] = value.strip()
        here = handle.tell()
    if fields.get("BinaryData", "True").lower() not in ("true", "1") or int(fields.get("HeaderSize", "0")) < 0:
        return None
    compressed = fields.get("CompressedData", "False").lower() in ("true", "1")
    where, count = fields["ElementDataFile"], _product(int(n) for n in fields["DimSize"].split())
    if "%" in where or where.upper().startswith("LIST"):
        return None
    big = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False")).lower() in ("true", "1")
    kind = fields["ElementType"].removeprefix("MET_").removesuffix("_ARRAY")
    dtype = np.dtype(_META_TYPES[kind]).newbyteorder(">" if big else "<")
    count *= int(fields.get("ElementNumberOfChannels", "1"))
    local = where.upper() == "LOCAL"
    start = (here if local else 0) + int(fields.get("HeaderSize", "0"))
    return Voxels(file if local else file.parent / where, dtype, count, start, 0, compressed)


def _of_nrrd(file: Path) -> Voxels | None:
    fields: dict[str, str] = {}
    with open(file, "rb") as handle:
        if not handle.readline(1 << 10).startswith(b"NRRD"):
            raise ValueError("it does not begin as an NRRD file does")
        while (line := handle.readline(1 << 16)) not in (b"\n", b"\r\n", b""):
            key, colon, value = line.decode("latin-1").partition(":")
            if colon and not line.startswith(b"#") and not value.startswith("="):
                fields[key.strip().lower()] = value.strip()
        here = handle.tell()
    where = fields.get("data file", fields.get("datafile"))
    encoding = fields["encoding"].lower()
    lines, skip = (int(fields.get(f"{k} skip", fields.get(f"{k}skip", "0"))) for k in ("line", "byte"))
    if encoding not in ("raw", "gzip", "gz") or lines or skip < 0 or (where and ("%" in where or "LIST" in where)):
        return None
    big = fields.get("endian", "little").lower() == "big"
    dtype = np.dtype(_NRRD_TYPES[fields["type"].lower()]).newbyteorder(">" if big else "<")
    count, compressed = _product(int(n) for n in fields["sizes"].split()), encoding != "raw"
    return Voxels(file.parent / where if where else file, dtype, count, 0 if where else here, skip, compressed)


def _of_gipl(file: Path) -> Voxels | None:
    with open(file, "rb") as handle:
        start = handle.read(256)
    if len(start) < 256:
        raise EOFError("it is cut")
    numbers = np.frombuffer(start[:10], ">u2")
    if int(numbers[4]) not in _GIPL_TYPES:
        return None
    count = _product(max(int(n), 1) for n in numbers[:4])
    return Voxels(file, np.dtype(">" + _GIPL_TYPES[int(numbers[4])]), count, 256)


def _go_through(voxels: Voxels, promised: int) -> None:
    got, rest, skip = 0, b"", voxels.skip
    try:
        with open(voxels.file, "rb") as handle:
            handle.seek(voxels.start)
            for block in _inflated(handle) if voxels.compressed else iter(lambda: handle.read(_BLOCK), b""):
                skipped = min(skip, len(block))
                skip, got = skip - skipped, got + len(block) - skipped
                rest = _check_values(rest + block[skipped : len(block) - max(got - promised, 0)], voxels)
                if got > promised + _SURPLUS:
                    break  # whatever it is, it shall not be read to its end
    except EOFError as error:
        raise DamagedFile(f"cut: it ends after {got:,} of the {promised:,} bytes of voxels that its header promises; "
                          f"copy it again") from error  # fmt: skip
    except zlib.error as error:
        raise DamagedFile(f"damaged: its compressed data is wrong after {got:,} of {promised:,} bytes "
                          f"({_short(error)}); copy it again") from error  # fmt: skip
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


def check_range(lowest: float, highest: float) -> None:
    """Raise BadCase unless the extremes of a volume, NaN where it holds NaN, are numbers to compute with."""
    if not np.isfinite([lowest, highest]).all():
        raise BadCase(NON_FINITE)
    if max(-lowest, highest) > LARGEST:
        raise BadCase(f"a voxel of {max(lowest, highest, key=abs):.3g}: values beyond {LARGEST:g} are no intensities; "
                      f"mend or clip them")  # fmt: skip


def _inflated(handle: BinaryIO) -> Iterator[bytes]:
    """The decompressed data in blocks of at most `_BLOCK` bytes; raises EOFError where the stream has no end."""
    decoder, data = zlib.decompressobj(_AUTOMATIC), b""
    while data := data or handle.read(_BLOCK):
        yield decoder.decompress(data, _BLOCK)
        data = decoder.unconsumed_tail
        if decoder.eof:
            data = decoder.unused_data
            data += handle.read(_BLOCK) if len(data) < len(_GZIP) else b""
            if not data.startswith(_GZIP):
                return  # not another gzip member: padding, which ITK ignores too
            decoder = zlib.decompressobj(_AUTOMATIC)
    while block := decoder.decompress(b"", _BLOCK):
        yield block
    if not decoder.eof:
        raise EOFError


def _first(blocks: Iterator[bytes], count: int) -> Iterator[bytes]:
    for block in blocks:
        yield block
        count -= len(block)
        if count <= 0:
            return


def _begins(handle: BinaryIO, sign: bytes) -> bool:
    found = handle.read(len(sign)) == sign
    handle.seek(0)
    return found


def _product(size: Any) -> int:
    count = 1
    for n in size:
        count *= int(n)
    return count


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[-1][:100]
