from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nnssl.core.batch_memory import BatchMemory, empty, stacked, tensor_at

ARRAYS: dict[str, Any] = {
    "crops": [np.random.default_rng(i).normal(size=(2, 3, 5)).astype(np.float32) for i in range(3)],
    "flags": [np.array([True, False, True])] * 3,
    "none": [np.zeros((0, 4), dtype=np.int64)] * 3,
    "number": [np.asarray(i) for i in range(3)],
}


def _batch(memory: BatchMemory, scale: int = 1) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The tensors of a batch as they arrive, and their piece; some are made outside of it."""
    with memory.batch():
        tensors = {name: stacked([array * scale for array in arrays]) for name, arrays in ARRAYS.items()}
        tensors["other"] = torch.arange(7)[::2] * scale
        piece, places = memory.packed(tensors)
    return {name: tensor_at(piece, place) for name, place in places.items()}, piece


@pytest.mark.parametrize("pieces", [0, 1, 3])
def test_packed__keeps_values_types_and_shapes(pieces: int) -> None:
    memory = BatchMemory(pieces)
    for turn in range(1, 6):  # the first ones find the pieces too small
        got, piece = _batch(memory, turn)
        assert piece.is_shared() and all(t.untyped_storage().data_ptr() == piece.data_ptr() for t in got.values())
        assert piece.numel() <= 1.1 * sum(t.nbytes + 64 for t in got.values())
        for name, arrays in ARRAYS.items():
            expected = np.stack([array * turn for array in arrays])
            assert got[name].numpy().dtype == expected.dtype
            np.testing.assert_array_equal(got[name].numpy(), expected)
        assert got["other"].tolist() == [0, 2 * turn, 4 * turn, 6 * turn]


def test_batch__pieces_are_used_in_turn_or_once() -> None:
    memory = BatchMemory(2)
    first = [_batch(memory)[1].data_ptr() for _ in range(2)]
    assert [_batch(memory)[1].data_ptr() for _ in range(4)] == first * 2 and len(set(first)) == 2
    kept = [_batch(memory := BatchMemory())[1]]
    kept += [_batch(memory, i)[1] for i in range(2, 4)]
    assert len({piece.data_ptr() for piece in kept}) == 3


def test_empty__is_private_without_a_batch() -> None:
    assert not empty((2, 3), torch.float16).is_shared()
    assert stacked([np.float32(2), np.float32(3)]).tolist() == [2.0, 3.0]
