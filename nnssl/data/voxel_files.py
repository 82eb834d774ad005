"""Where files of nnU-Net's formats keep their voxels, by their headers."""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from nnssl.core.errors import DamagedFile

BLOCK = 1 << 20  # bytes
_GZIP = b"\x1f\x8b"
_AUTOMATIC = 47  # zlib's wbits: gzip or zlib by the first bytes


def inflated(handle: BinaryIO) -> Iterator[bytes]:
    """Decompress from the position of `handle` on, in blocks of at most `BLOCK` bytes.

    Consecutive gzip members are one stream; anything else after them is ignored, as in ITK.

    Raises:
        EOFError: the stream is cut.
        zlib.error: it is damaged, or its check sum is wrong.
    """
    decoder, data = zlib.decompressobj(_AUTOMATIC), b""
    while data := data or handle.read(BLOCK):
        yield decoder.decompress(data, BLOCK)
        data = decoder.unconsumed_tail
        if decoder.eof:
            data = decoder.unused_data
            data += handle.read(BLOCK) if len(data) < len(_GZIP) else b""
            if not data.startswith(_GZIP):
                return
            decoder = zlib.decompressobj(_AUTOMATIC)
    while block := decoder.decompress(b"", BLOCK):
        yield block
    if not decoder.eof:
        raise EOFError("the compressed data has no end")


def first_bytes(handle: BinaryIO, count: int) -> tuple[bytes, bool]:
    """At least the first `count` bytes of a file, decompressed if it is a .gz, and whether it is one; fewer if it ends.

    Raises:
        zlib.error: as `inflated`.
    """
    start = handle.read(count)
    if not start.startswith(_GZIP):
        return start, False
    handle.seek(0)
    found = b""
    with contextlib.suppress(EOFError):
        for block in inflated(handle):
            found += block
            if len(found) >= count:
                break
    return found, True


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
    """Where `file` keeps its voxels, by its header; None for an unknown format or variant.

    Raises:
        DamagedFile: the header cannot be read.
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
    except EOFError as error:
        raise DamagedFile("cut: it ends before its header does; copy it again") from error
    except zlib.error as error:
        raise DamagedFile(f"damaged: its compressed data is wrong ({error}); copy it again") from error
    except (KeyError, ValueError, IndexError, OverflowError) as error:
        text = (str(error).splitlines() or [type(error).__name__])[-1][:100]
        raise DamagedFile(f"damaged: its header cannot be read ({text}); copy or export it again") from error


def read_nifti_header(file: Path) -> tuple[Any, bool]:
    """nibabel's header of a NIfTI file as it is stored, and whether the file is compressed.

    nibabel and ITK mend the spacing while they read, silently.

    Raises:
        ValueError: it is no NIfTI header.
        EOFError, zlib.error: the file is cut or damaged.
        OSError: the file cannot be opened.
    """
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    with open(file, "rb") as handle:
        start, compressed = first_bytes(handle, 540)
    for kind, size, magic in ((Nifti1Header, 348, start[344:348]), (Nifti2Header, 540, start[4:8])):
        if len(start) >= size and size.to_bytes(4, "little") in (start[:4], start[3::-1]) and magic[:2] == b"n+":
            return kind(start[:size], check=False), compressed
    if len(start) < 348:
        raise EOFError
    raise ValueError("it does not begin as a NIfTI file does")


def _of_nifti(file: Path) -> Voxels:
    from nibabel.nifti1 import data_type_codes

    header, compressed = read_nifti_header(file)
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite(slope) or slope == 0:  # "not scaled", for nibabel and ITK
        slope, intercept = 1.0, 0.0
    size = [int(n) for n in header["dim"][1 : int(header["dim"][0]) + 1]]
    offset = int(header["vox_offset"]) or header.sizeof_hdr + 4
    if not size or min(size) < 1 or int(header["dim"][0]) > 7 or offset < header.sizeof_hdr:
        raise ValueError(f"{'x'.join(map(str, size)) or 'no'} voxels from byte {offset} on")
    if int(header["datatype"]) not in data_type_codes.value_set():
        raise ValueError(f"voxels of the unknown type {int(header['datatype'])}")
    dtype = header.get_data_dtype()
    return Voxels(
        file, dtype, math.prod(size), 0, offset, compressed, slope, intercept if np.isfinite(intercept) else 0
    )


def _of_meta_image(file: Path) -> Voxels | None:
    with open(file, "rb") as handle:
        fields: dict[str, str] = {}
        while "ElementDataFile" not in fields:
            line = handle.readline(1 << 16)
            if not line.endswith(b"\n"):
                raise EOFError
            if b"=" not in line:
                raise ValueError("it does not begin as a MetaImage does")
            key, _, value = line.decode("latin-1").partition("=")
            fields[key.strip()] = value.strip()
        here = handle.tell()
    if fields.get("BinaryData", "True").lower() not in ("true", "1") or int(fields.get("HeaderSize", "0")) < 0:
        return None
    compressed = fields.get("CompressedData", "False").lower() in ("true", "1")
    where, count = fields["ElementDataFile"], math.prod(int(n) for n in fields["DimSize"].split())
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
        while (line := handle.readline(1 << 16)) not in (b"\n", b"\r\n"):
            if not line and ("data file" in fields or "datafile" in fields):
                break  # a header alone
            if not line.endswith(b"\n"):
                raise EOFError
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
    count, compressed = math.prod(int(n) for n in fields["sizes"].split()), encoding != "raw"
    return Voxels(file.parent / where if where else file, dtype, count, 0 if where else here, skip, compressed)


def _of_gipl(file: Path) -> Voxels | None:
    with open(file, "rb") as handle:
        start = handle.read(256)
    if len(start) < 256:
        raise EOFError
    numbers = np.frombuffer(start[:10], ">u2")
    if int(numbers[4]) not in _GIPL_TYPES:
        return None
    count = math.prod(max(int(n), 1) for n in numbers[:4])
    return Voxels(file, np.dtype(">" + _GIPL_TYPES[int(numbers[4])]), count, 256)
