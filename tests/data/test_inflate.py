from __future__ import annotations

import gzip
import io
import zlib

import numpy as np
import pytest

from nnssl.data.voxel_files import BLOCK, first_bytes, inflated

DATA = np.random.default_rng(0).integers(0, 50, 3 * BLOCK + 17, dtype=np.uint8).tobytes()


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (gzip.compress(DATA, mtime=0), DATA),
        (zlib.compress(DATA), DATA),
        (gzip.compress(DATA[:100], mtime=0) + gzip.compress(DATA[100:], mtime=0), DATA),
        (gzip.compress(DATA, mtime=0) + bytes(700), DATA),
        (gzip.compress(bytes(40 * BLOCK), mtime=0), bytes(40 * BLOCK)),  # little in, much out
        (gzip.compress(b"", mtime=0), b""),
    ],
)
def test_inflated__in_small_blocks(stream: bytes, expected: bytes) -> None:
    blocks = list(inflated(io.BytesIO(stream)))
    assert b"".join(blocks) == expected and max(map(len, blocks)) <= BLOCK


class _Portions(io.BytesIO):
    """A file that gives its first bytes, then the rest."""

    first = 0

    def read(self, size: int | None = -1) -> bytes:
        return super().read(self.first if self.tell() == 0 else size)


@pytest.mark.parametrize("more", [0, 1, 2])
def test_inflated__members_whose_border_is_that_of_a_block(more: int) -> None:
    member = gzip.compress(DATA[:1000])
    handle = _Portions(member + gzip.compress(DATA[1000:]))
    handle.first = len(member) + more
    assert b"".join(inflated(handle)) == DATA


@pytest.mark.parametrize("length", [0, 1, 10, 1000, -9, -1])
def test_inflated__a_stream_without_its_end(length: int) -> None:
    with pytest.raises(EOFError):
        list(inflated(io.BytesIO(gzip.compress(DATA)[:length])))


@pytest.mark.parametrize("at", [5000, -6, -2])  # in the data, in the check sum, in the length
def test_inflated__a_damaged_stream(at: int) -> None:
    stream = bytearray(gzip.compress(DATA))
    stream[at] ^= 0xFF
    with pytest.raises(zlib.error):
        list(inflated(io.BytesIO(bytes(stream))))


def test_first_bytes__of_both_kinds_and_of_cut_ones() -> None:
    assert first_bytes(io.BytesIO(DATA), 10) == (DATA[:10], False)
    found, compressed = first_bytes(io.BytesIO(gzip.compress(DATA)), 10)
    assert compressed and found[:10] == DATA[:10] and len(found) <= BLOCK
    assert first_bytes(io.BytesIO(gzip.compress(DATA[:5])[:-3]), 10) == (DATA[:5], True)
