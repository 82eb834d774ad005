"""InfoNCE of queries against keys without gradient, streamed, and the queue of keys (MoCo; methods.md 5.3)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nnssl.core.distributed import all_reduce_sum, world_size
from nnssl.methods.shared.info_nce import LEAST_TEMPERATURE, LEAST_TEMPERATURE_FLOAT32, are_near
from nnssl.networks.contrastive import l2_normalise

_NOBODY = -1.0  # volume of an empty slot


class KeyQueue(nn.Module):
    """A ring buffer of the latest unit vectors, each with the place that it encodes.

    Processes that train together must all put in the rows of all of them.

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
        """Replace the oldest vectors by keys, in order; of more than L keys only by the last L.

        Args:
            keys: (n, d), normalised here. A key of length 0 leaves its slot empty.
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
        """Return (L,) bool: which slots are filled."""
        return self.places[:, 0] >= 0


_STRIP = 2**22  # entries of the matrix of all pairs that are in memory at a time


def queue_info_nce(
    queries: Tensor,
    keys: Tensor,
    negatives: Tensor,
    temperature: float,
    places: Tensor | None = None,
    places_of_negatives: Tensor | None = None,
    exclude_radius_mm: float = 0.0,
) -> Tensor:
    """Return the mean over the queries of all ranks of

        -log e^{<q, k+>/tau} / (e^{<q, k+>/tau} + sum_j e^{<q, k_j>/tau}),

    where j runs over the negatives that are not near the query. With several ranks, the mean over all queries is the
    MEAN of the returned values over the ranks, which fits DistributedDataParallel's averaged gradients. Computed in
    float32 (float64 for float64 input) under autocast too. Only the queries get a gradient.

    Args:
        queries: (N, d), need not be normalised. N may differ between ranks; with N = 0 everywhere the loss is 0.
        keys: (N, d) positives, row by row.
        negatives: (M, d). A term without negatives is 0.
        temperature: tau, at least 1/650; below 1/60 the sums are taken in float64.
        places: (N, 4) [volume, z, y, x] of the queries, in mm; None to exclude no negative.
        places_of_negatives: (M, 4) the same; a volume below 0 excludes that negative.
        exclude_radius_mm: Negatives within this distance in the query's volume are excluded.

    Returns:
        () loss, attached to the graph.

    Raises:
        ValueError: Shapes do not fit, or a number is out of its range.
    """
    _check(queries, keys, negatives, temperature, places, places_of_negatives)
    with torch.autocast(queries.device.type, enabled=False):
        q, k, n = l2_normalise(queries), l2_normalise(keys.detach()), l2_normalise(negatives.detach())
        if temperature < LEAST_TEMPERATURE_FLOAT32:
            q, k, n = q.double(), k.double(), n.double()
        terms: Tensor = _Terms.apply(q, k.to(q), n.to(q), places, places_of_negatives, temperature, exclude_radius_mm)
        count = all_reduce_sum(torch.full((), len(queries), dtype=terms.dtype, device=terms.device))
        return terms.sum().to(l2_normalise(queries[:0]).dtype) * (world_size() / count.clamp(min=1))


def _check(
    queries: Tensor,
    keys: Tensor,
    negatives: Tensor,
    temperature: float,
    places: Tensor | None,
    places_of_negatives: Tensor | None,
) -> None:
    if queries.ndim != 2 or queries.shape != keys.shape:
        raise ValueError(f"queries and keys must both be (N, d), got {tuple(queries.shape)} and {tuple(keys.shape)}")
    if negatives.ndim != 2 or negatives.shape[1] != queries.shape[1]:
        raise ValueError(f"negatives must be (M, {queries.shape[1]}), got {tuple(negatives.shape)}")
    if (places is None) != (places_of_negatives is None):
        raise ValueError("give the places of the queries and those of the negatives, or neither")
    for name, given, rows in (("places", places, queries), ("places_of_negatives", places_of_negatives, negatives)):
        if given is not None and given.shape != (len(rows), 4):
            raise ValueError(f"{name} must be ({len(rows)}, 4), got {tuple(given.shape)}")
    if not temperature >= LEAST_TEMPERATURE:
        raise ValueError(f"temperature must be at least {LEAST_TEMPERATURE:.4f}, got {temperature}")


class _Terms(torch.autograd.Function):
    """The N terms of the loss, from unit vectors.

    With s_j = <q, k_j>/tau, S the sum of the e^{s_j} and p the positive logit, a term is log(1 + S e^{-p}), and

        d term / d q = (sum_j e^{s_j} k_j - S k+) / (S + e^p) / tau.

    Keys have no gradient. One pass over strips of the matrix of all pairs therefore gives both sums, and the matrix is
    never stored, not even for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        negatives: Tensor,
        places: Tensor | None,
        places_of_negatives: Tensor | None,
        temperature: float,
        radius: float,
    ) -> Tensor:
        sums, pulls = q.new_zeros(len(q)), torch.zeros_like(q)
        for part, strip in _strips(q, negatives, places, places_of_negatives, temperature, radius):
            sums += strip.sum(1)
            pulls.addmm_(strip, negatives[part])
        positives = (q * k).sum(1) / temperature
        terms = torch.logaddexp(sums.log() - positives, torch.zeros_like(sums))
        # S + e^p = e^{p + term}
        slopes = (pulls - sums[:, None] * k) * (-positives - terms).exp()[:, None] / temperature
        ctx.save_for_backward(slopes)
        return terms

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return upstream[:, None] * slopes, None, None, None, None, None, None


def _strips(
    q: Tensor,
    negatives: Tensor,
    places: Tensor | None,
    places_of_negatives: Tensor | None,
    temperature: float,
    radius: float,
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the slice of negatives of each strip and their e^{s} (N, m), with 0 for excluded ones."""
    step = max(_STRIP // max(len(q), 1), 1)
    for start in range(0, len(negatives), step):
        part = slice(start, min(start + step, len(negatives)))
        strip = (q @ negatives[part].T).div_(temperature).exp_()
        if places is not None and places_of_negatives is not None:
            theirs = places_of_negatives[part]
            strip.masked_fill_(are_near(places, theirs, radius) | (theirs[:, 0] < 0), 0)
        yield part, strip
