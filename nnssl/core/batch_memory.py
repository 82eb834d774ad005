"""Memory of batches. A worker of the loader shares its own with the process that trains, in one piece a batch.

A fresh page of shared memory costs the system more time than reading its voxels, so that pieces are used again where
the other side copies them, as it does into pinned memory. Collating functions ask `empty` for memory and need not know.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

_ALIGNED = 64  # bytes
_SPARE = 1.1  # of a piece, for batches that are a little larger


class Place(NamedTuple):
    """Where a tensor is in a piece: its first byte, type and shape."""

    begin: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        """The byte behind it."""
        return self.begin + prod(self.shape) * self.dtype.itemsize


def place_after(used: int, dtype: torch.dtype, shape: Sequence[int]) -> Place:
    """The first aligned place behind the used bytes of a piece."""
    return Place(-(-used // _ALIGNED) * _ALIGNED, dtype, tuple(shape))


class BatchMemory:
    """Pieces of shared memory, one a batch.

    Args:
        pieces: that are used in turn; 0: each batch gets a fresh one.
    """

    def __init__(self, pieces: int = 0) -> None:
        self._pieces = [_shared(0)] * max(pieces, 1)
        self._fresh = pieces == 0
        self._turn, self._used = 0, 0

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Begin a batch; `empty` gives memory of its piece inside of the block."""
        self._turn, self._used = (self._turn + 1) % len(self._pieces), 0
        if self._fresh:
            self._pieces[0] = _shared(self._pieces[0].numel())
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def take(self, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """A part of the batch's piece; private memory where the piece is too small, which `packed` repairs."""
        piece, used = self._pieces[self._turn], self._used
        place = self._place(dtype, shape)
        if self._used <= piece.numel():
            return tensor_at(piece, place)
        self._used = used  # `packed` finds a place for it
        return torch.empty(shape, dtype=dtype)

    def packed(self, tensors: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Place]]:
        """The batch's piece with all tensors in it, copied there unless they are there already, and their places."""
        piece = self._pieces[self._turn]
        own = piece.untyped_storage().data_ptr()
        places, copied = {}, []
        for name, tensor in tensors.items():
            if tensor.numel() and tensor.untyped_storage().data_ptr() == own and tensor.is_contiguous():
                begin = int(tensor.storage_offset()) * tensor.itemsize
                places[name] = Place(begin, tensor.dtype, tuple(tensor.shape))
            else:
                places[name] = self._place(tensor.dtype, tuple(tensor.shape))
                copied.append(name)
        if self._used > piece.numel():
            copied = list(tensors)
            piece = self._pieces[self._turn] = _shared(int(self._used * _SPARE))
        for name in copied:
            tensor_at(piece, places[name]).copy_(tensors[name])
        return piece, places

    def _place(self, dtype: torch.dtype, shape: tuple[int, ...]) -> Place:
        place = place_after(self._used, dtype, shape)
        self._used = place.stop
        return place


_current: ContextVar[BatchMemory | None] = ContextVar("_current", default=None)


def tensor_at(piece: Tensor, place: Place) -> Tensor:
    """The tensor at a place of a piece of memory (bytes,) uint8."""
    return piece[place.begin : place.stop].view(place.dtype).view(place.shape)


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor on the CPU, for a batch."""
    memory = _current.get()
    return torch.empty(shape, dtype=dtype) if memory is None else memory.take(dtype, shape)


def stacked(arrays: Sequence[Any]) -> Tensor:
    """Arrays of one shape and type along a new first axis, as a tensor of a batch."""
    first = np.asarray(arrays[0])
    out = empty((len(arrays), *first.shape), torch.from_numpy(np.empty(0, first.dtype)).dtype)
    np.stack(arrays, out=out.numpy())
    return out


def _shared(size: int) -> Tensor:
    # share_memory_() would first fill private memory, and copy it
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(max(size, 1)))
