"""InfoNCE over matched voxels of two views (vox2vec, section 3.3), streamed: the matrix of all pairs never exists."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from nnssl.core.distributed import gather_rows, rank, row_counts, world_size
from nnssl.networks.contrastive import l2_normalise

# Entries of one strip of the matrix: on the CPU it should stay in the cache; a GPU is best with few and large kernels.
_CPU_STRIP = 2**22
_GPU_STRIP = 2**24
# exp(1 / temperature) times the number of pairs must stay far below the largest float32 (e^88) or float64 (e^709).
LEAST_TEMPERATURE_FLOAT32 = 1 / 60
LEAST_TEMPERATURE = 1 / 650
_COINCIDENT_MM = 1e-3


def info_nce(
    h1: Tensor,
    h2: Tensor,
    temperature: float = 0.1,
    reduction: Literal["mean", "sum"] = "mean",
    sources: Tensor | None = None,
    exclude_radius_mm: float = 0.0,
    chunk_rows: int | None = None,
    across_ranks: bool = True,
) -> Tensor:
    """Return the InfoNCE loss of N voxels or crops with two views each.

    With unit vectors z = h / max(|h|, 1e-8), voxel i and view k, one of the 2N terms is (methods.md 1.3)

        -log e^{<z_i1, z_i2>/tau} / (e^{<z_i1, z_i2>/tau} + sum_{j != i} sum_{l=1,2} e^{<z_ik, z_jl>/tau}).

    The chance level of the mean is ln(2N - 1). With several ranks the negatives come from all of them, and the loss of
    all rows together is the MEAN of the returned values over the ranks, which fits DistributedDataParallel's averaged
    gradients. Every rank must call forward and backward, even without rows. Computed in float32 (float64 for float64
    input) under autocast too; the gradient can be taken once.

    Args:
        h1: (N, d) vectors of the first view, need not be normalised. N may be 0 (the loss is 0) and may differ between
            ranks.
        h2: (N, d) vectors of the second view, of the same voxels row by row.
        temperature: tau, at least 1/650; below 1/60 the sums are taken in float64.
        reduction: "mean" over the 2N terms (the authors' code) or their "sum" (the paper).
        sources: (N, 4) [volume, z, y, x] of each voxel: number of the volume (the same on all ranks, below 2^24) and
            position in mm. Voxels j of the same volume within `exclude_radius_mm` of i are not negatives.
        exclude_radius_mm: that radius, >= 0; at 0 it excludes only coincident voxels (within 0.001 mm).
        chunk_rows: rows of the 2N x 2N matrix computed at a time (whole voxels, so at least two); None fits the device.
            It changes the result by rounding only.
        across_ranks: False uses only this rank's rows, without communication.

    Returns:
        () loss, attached to the graph.

    Raises:
        ValueError: shapes do not fit, or a number is out of its range.
    """
    _check(h1, h2, temperature, reduction, sources, exclude_radius_mm, chunk_rows)
    with torch.autocast(h1.device.type, enabled=False):
        vectors = torch.stack([l2_normalise(h1), l2_normalise(h2)], dim=1)
        wide = vectors.double() if temperature < LEAST_TEMPERATURE_FLOAT32 else vectors
        counts = row_counts(vectors) if across_ranks else [len(vectors)]
        places = None if sources is None else sources.detach().to(vectors.device)
        terms: Tensor = _Terms.apply(
            wide,
            places,
            temperature,
            exclude_radius_mm + _COINCIDENT_MM,
            2 * max((chunk_rows or _rows_of_strip(wide, counts)) // 2, 1),  # both views of each voxel
            counts,
        )
        total = terms.to(vectors.dtype).sum() * (world_size() if across_ranks else 1)
        return total / max(2 * sum(counts), 1) if reduction == "mean" else total


def _check(
    h1: Tensor,
    h2: Tensor,
    temperature: float,
    reduction: str,
    sources: Tensor | None,
    exclude_radius_mm: float,
    chunk_rows: int | None,
) -> None:
    if h1.ndim != 2 or h1.shape != h2.shape:
        raise ValueError(f"h1 and h2 must both have the shape (N, d), got {tuple(h1.shape)} and {tuple(h2.shape)}")
    if sources is not None and sources.shape != (h1.shape[0], 4):
        raise ValueError(f"sources must have the shape ({h1.shape[0]}, 4), got {tuple(sources.shape)}")
    if not temperature >= LEAST_TEMPERATURE:
        raise ValueError(f"temperature must be at least {LEAST_TEMPERATURE:.4f}, got {temperature}")
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
    if not exclude_radius_mm >= 0:
        raise ValueError(f"exclude_radius_mm must not be negative, got {exclude_radius_mm}")
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"chunk_rows must be at least 1, got {chunk_rows}")


def _rows_of_strip(vectors: Tensor, counts: list[int]) -> int:
    numbers = _CPU_STRIP if vectors.device.type == "cpu" else _GPU_STRIP
    return numbers // max(2 * sum(counts), 1)


class _Terms(torch.autograd.Function):
    """The 2N terms of the loss, from unit vectors (N, 2, d), whose second axis is the view.

    With s_ab = <z_a, z_b>/tau over all 2N vectors, S_a the sum of e^{s_ab} over a's negatives and p_a its positive
    logit, a term is log(1 + S_a e^{-p_a}): without the positive in the sum, small losses keep their digits. No maximum
    is subtracted, because |s| <= 1/tau. The matrix of the e^{s_ab} is symmetric: only its upper triangle is computed,
    in strips of rows [start, stop) and columns [start, end). The part of a strip right of the diagonal block counts for
    its columns too, except for columns of other ranks, which come last.
    """

    @staticmethod
    def forward(
        ctx: Any,
        vectors: Tensor,
        sources: Tensor | None,
        temperature: float,
        radius: float,
        chunk_rows: int,
        counts: list[int],
    ) -> Tensor:
        own = 2 * vectors.shape[0]
        columns = _own_first(vectors / math.sqrt(temperature), counts).flatten(0, 1)
        places = None if sources is None else _near_origin(_own_first(sources, counts), vectors.dtype)
        sums = columns.new_zeros(own)
        for start, stop, strip in _strips(columns, places, own, radius, chunk_rows):
            sums[start:stop] += strip.sum(1)
            sums[stop:] += strip[:, stop - start : own - start].sum(0)
        positives = (columns[0:own:2] * columns[1:own:2]).sum(1).repeat_interleave(2)
        excess = sums.log() - positives
        terms = torch.logaddexp(excess, torch.zeros_like(excess))
        ctx.save_for_backward(columns, places, positives, terms)
        ctx.settings = temperature, radius, chunk_rows, counts
        return terms

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        columns, places, positives, terms = ctx.saved_tensors
        temperature, radius, chunk_rows, counts = ctx.settings
        own = terms.shape[0]
        # Term a has the slope w_a e^{s_ab} in s_ab, where w_a = upstream_a / (S_a + e^{p_a}); term b has w_b e^{s_ab}.
        # With the w of all ranks, each rank computes the whole gradient of its own rows.
        weights = _own_first((upstream * (-positives - terms).exp()).view(-1, 2), counts).flatten()
        gradient = torch.zeros_like(columns[:own])
        buffer = columns.new_empty(min(chunk_rows, own) * columns.shape[0])
        with torch.autocast(columns.device.type, enabled=False):
            for start, stop, strip in _strips(columns, places, own, radius, chunk_rows):
                both = buffer[: strip.numel()].view_as(strip)
                strip *= torch.add(weights[start:stop, None], weights[start:], out=both)
                gradient[start:stop].addmm_(strip, columns[start:])
                gradient[stop:].addmm_(strip[:, stop - start : own - start].T, columns[start:stop])
        # Both terms of a voxel pull its two vectors together: d term_a / d p = e^{-term_a} - 1.
        pull = (upstream * torch.expm1(-terms)).view(-1, 2).sum(1)
        pairs = columns[:own].view(-1, 2, columns.shape[1])
        result = torch.addcmul(gradient.view_as(pairs), pull[:, None, None], pairs.flip(1))
        return result / math.sqrt(temperature), None, None, None, None, None


def _own_first(rows: Tensor, counts: list[int]) -> Tensor:
    """Rows of all ranks, this rank's own at the top."""
    return gather_rows(rows, counts).roll(-sum(counts[: rank()]), 0) if len(counts) > 1 else rows


def _strips(
    columns: Tensor, places: Tensor | None, own: int, radius: float, chunk_rows: int
) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (start, stop, strip): e^{s} of rows [start, stop) with columns [start, end), 0 for pairs that do not count.

    The strips share their memory: each may be changed, and is valid until the next one is drawn.
    """
    buffer = columns.new_empty(min(chunk_rows, own) * columns.shape[0])
    for start in range(0, own, chunk_rows):
        stop = min(start + chunk_rows, own)
        shape = (stop - start, columns.shape[0] - start)
        strip = buffer[: shape[0] * shape[1]].view(shape)
        torch.mm(columns[start:stop], columns[start:].T, out=strip).exp_()
        by_voxel = strip.view(shape[0] // 2, 2, shape[1] // 2, 2)
        if places is not None:
            clear_pairs(by_voxel, are_near(places[start // 2 : stop // 2], places[start // 2 :], radius))
        by_voxel.diagonal(0, 0, 2).zero_()  # a voxel with itself; indices would make the host wait for a card
        yield start, stop, strip


def _near_origin(places: Tensor, dtype: torch.dtype) -> Tensor:
    """Positions in mm from their least ones, in the type of the vectors: float32 then tells 0.0001 mm apart in 2 m."""
    if not len(places):
        return places.to(dtype)
    shifted = places - places.amin(0)  # volumes too: only equality counts
    return shifted.to(dtype)


def clear_pairs(by_voxel: Tensor, near: Tensor, few: bool | None = None) -> None:
    """Set the entries of near pairs to 0, in place.

    Args:
        by_voxel: (r, 2, c, 2) voxels and views of rows and columns.
        near: (r, c) bool.
        few: whether to look the pairs up first, which takes a tenth of the time on a CPU and makes the host wait for a
            card; None: as the device likes.
    """
    if near.device.type == "cpu" if few is None else few:
        rows, columns = near.nonzero(as_tuple=True)
        by_voxel[rows, :, columns, :] = 0
    else:
        by_voxel.masked_fill_(near[:, None, :, None], 0)


def are_near(rows: Tensor, columns: Tensor, radius: float) -> Tensor:
    """Return (r, c) bool: which of the places (r, 4) and (c, 4) [volume, z, y, x] are within `radius` in one volume."""
    squared = torch.zeros(rows.shape[0], columns.shape[0], dtype=rows.dtype, device=rows.device)
    for axis in (1, 2, 3):
        difference = rows[:, axis, None] - columns[:, axis]
        squared.addcmul_(difference, difference)
    return (squared <= radius**2).logical_and_(rows[:, 0, None] == columns[:, 0])
