"""The queue of momentum contrast: encodings of earlier steps, which serve as negatives (He et al., CVPR 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nnssl.losses.normalise import l2_normalise

_NOBODY = -1.0  # volume of a slot that holds no vector


class KeyQueue(nn.Module):
    """A ring of the latest unit vectors, each with the place that it encodes. All of it are buffers.

    Processes that train together have to put in the same rows, those of all of them.

    Args:
        length: Number of slots L.
        dim: Number of channels d of the vectors.
    """

    vectors: Tensor  # (L, d) float32
    places: Tensor  # (L, 4) float32 [volume, z, y, x], in mm; the volume is below 0 where the slot is unfilled
    pointer: Tensor  # () int64, the slot that is filled next

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        self.length = length
        self.register_buffer("vectors", torch.zeros(length, dim))
        self.register_buffer("places", torch.full((length, 4), _NOBODY))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, keys: Tensor, places: Tensor) -> None:
        """Put keys in, in their order, in place of the oldest ones; of more than L only the last L.

        Args:
            keys: (n, d), made unit vectors here. One of length 0 takes a slot that stays unfilled.
            places: (n, 4) volume number (below 2^24) and position in mm.
        """
        skipped = max(len(keys) - self.length, 0)
        kept = l2_normalise(keys[skipped:])
        place = places[skipped:].to(self.places.dtype).clone()
        place[kept.square().sum(1) < 0.5, 0] = _NOBODY
        slots = (self.pointer + skipped + torch.arange(len(kept), device=kept.device)) % self.length
        self.vectors.index_copy_(0, slots, kept.to(self.vectors.dtype))
        self.places.index_copy_(0, slots, place)
        self.pointer.copy_((self.pointer + len(keys)) % self.length)

    def filled(self) -> Tensor:
        """Return (L,) bool: which slots hold a vector."""
        return self.places[:, 0] >= 0
