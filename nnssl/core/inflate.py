"""Decompressing gzip and zlib streams in small blocks, with their check sums."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from typing import BinaryIO

BLOCK = 1 << 20  # bytes
_GZIP = b"\x1f\x8b"
_AUTOMATIC = 47  # zlib's wbits: gzip or zlib by the first bytes


def inflated(handle: BinaryIO) -> Iterator[bytes]:
    """Decompress from the position of `handle` on, in blocks of at most `BLOCK` bytes.

    Several gzip members follow each other as one stream; what else follows it is left alone, as ITK does.

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
