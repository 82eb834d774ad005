"""The losses of self-supervised anatomical embeddings (SAM; methods.md 5.3), with hard negatives.

A query is a cell of one view of a volume; its positive is the nearest cell of the other view. Its negatives are hard
ones from both views, and for the coarse embedding also cells of other volumes. Cells too near to the query are not
negatives. The published code multiplies their similarities by 0: each still adds exp(0) = 1 to the denominator
(coarse), or comes back with its own similarity if there are too few candidates (fine, even the positive itself). Here
their similarities, and those of padding, are always minus infinity.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Entries of one chunk of the matrix of queries and candidates; memory holds a few chunks at a time.
_CPU_CHUNK = 2**22
_GPU_CHUNK = 2**24


class Cells(NamedTuple):
    """The M cells of both views of a volume, those of the first view first.

    Args:
        vectors: (M, d) unit vectors.
        places: (M, 3) positions in mm in the volume.
        usable: (M,) bool, False in padding.
    """

    vectors: Tensor
    places: Tensor
    usable: Tensor


class Pairs(NamedTuple):
    """Q queries and their positives.

    Args:
        query: (Q,) numbers of cells.
        positive: (Q,) numbers of cells.
        valid: (Q,) bool; the other rows are filling, so that no size depends on the data.
    """

    query: Tensor
    positive: Tensor
    valid: Tensor


class Negatives(NamedTuple):
    """K candidates for each of Q queries.

    Args:
        cells: (Q, K) numbers of cells.
        real: (Q, K) bool; the others are filling.
    """

    cells: Tensor
    real: Tensor


@torch.no_grad()
def hard_negatives(
    cells: Cells,
    pairs: Pairs,
    count: int,
    ignore_mm: float,
    others: Sequence[Tensor] = (),
    exclude_positive: bool = True,
) -> Negatives:
    """Return the usable cells that are most similar to each query, the most similar first.

    Args:
        cells: candidates.
        pairs: queries.
        count: largest number of negatives.
        ignore_mm: cells nearer to the query are not negatives.
        others: (M, d_i) further unit vectors of the cells, whose similarities are added.
        exclude_positive: the positive is not a negative. False: it is one if it is further away than `ignore_mm`, as in
            the published code.
    """
    chunk = max(1, (_CPU_CHUNK if cells.places.device.type == "cpu" else _GPU_CHUNK) // len(cells.places))
    count = min(count, len(cells.places))
    found = []
    for query, positive in zip(pairs.query.split(chunk), pairs.positive.split(chunk), strict=True):
        score = cells.vectors[query] @ cells.vectors.T
        for vectors in others:
            score.addmm_(vectors[query], vectors.T)
        score.masked_fill_(_nearer(cells.places[query], cells.places, ignore_mm), -torch.inf)
        score.masked_fill_(~cells.usable, -torch.inf)
        if exclude_positive:
            score.scatter_(1, positive[:, None], -torch.inf)
        found.append(score.topk(count, dim=1))
    return Negatives(
        torch.cat([indices for _, indices in found]), torch.cat([values.isfinite() for values, _ in found])
    )


@torch.no_grad()
def draw(negatives: Negatives, count: int, generator: torch.Generator | None = None) -> Negatives:
    """Draw `count` of each query's negatives without repetition; real ones before all others.

    Args:
        negatives: (Q, K) candidates.
        count: number to draw; all candidates if it is K or more.
        generator: source of the draws, on the device of the tensors.
    """
    if count >= negatives.cells.shape[1]:
        return negatives
    keys = torch.rand(negatives.cells.shape, generator=generator, device=negatives.cells.device)
    chosen = keys.masked_fill_(~negatives.real, -1.0).topk(count, dim=1).indices
    return Negatives(negatives.cells.gather(1, chosen), negatives.real.gather(1, chosen))


def negative_similarities(cells: Cells, pairs: Pairs, negatives: Negatives) -> Tensor:
    """Return (Q, K) similarities with gradient; minus infinity for filling."""
    queries = cells.vectors[pairs.query]
    # the whole matrix of similarities may be smaller than the vectors of all negatives
    if len(cells.vectors) <= negatives.cells.shape[1] * queries.shape[1]:
        values = (queries @ cells.vectors.T).gather(1, negatives.cells)
    else:
        vectors = cells.vectors.index_select(0, negatives.cells.flatten()).unflatten(0, negatives.cells.shape)
        values = torch.bmm(vectors, queries[:, :, None])[:, :, 0]
    return values.masked_fill(~negatives.real, -torch.inf)


def contrast(cells: Cells, pairs: Pairs, negatives: Tensor, temperature: float) -> Tensor:
    """Return the mean over the valid queries of the cross-entropy of one positive among negatives.

        -log e^{<q, p>/T} / (e^{<q, p>/T} + sum_n e^{<q, n>/T})

    Args:
        cells: both views.
        pairs: queries and positives.
        negatives: (Q, K) similarities <q, n>, minus infinity for filling.
        temperature: T.

    Returns:
        () loss, attached to the graph; 0 without a valid query.
    """
    positives = (cells.vectors[pairs.query] * cells.vectors[pairs.positive]).sum(1)
    logits = torch.cat([positives[:, None], negatives], dim=1) / temperature
    terms = logits.logsumexp(1) - logits[:, 0]
    return (terms * pairs.valid).sum() / pairs.valid.sum().clamp(min=1)


def fine_loss(
    cells: Cells,
    coarse: Tensor | None,
    pairs: Pairs,
    ignore_mm: float = 20.0,
    ranked: int = 2000,
    drawn: int = 500,
    temperature: float = 0.5,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the loss of the fine embedding in one volume (methods.md 5.3).

    The sum of fine and coarse similarity ranks the cells of both views; `drawn` of the `ranked` hardest are negatives.
    The logits are fine similarities alone.

    Args:
        cells: fine cells of both views.
        coarse: (M, d) the coarse embedding at the same cells; None to rank by the fine one alone.
        pairs: queries and positives.
        ignore_mm: cells nearer to a query are not negatives.
        ranked: number of hardest candidates.
        drawn: number of negatives per query.
        temperature: T.
        generator: source of the draws, on the device of the tensors.
    """
    candidates = hard_negatives(cells, pairs, ranked, ignore_mm, () if coarse is None else (coarse,))
    return contrast(cells, pairs, negative_similarities(cells, pairs, draw(candidates, drawn, generator)), temperature)


def coarse_loss(
    cells: Cells,
    elsewhere: Tensor,
    elsewhere_usable: Tensor,
    pairs: Pairs,
    ignore_mm: float = 5.0,
    ranked: int = 250,
    drawn: int = 200,
    temperature: float = 0.5,
    generator: torch.Generator | None = None,
    exclude_positive: bool = True,
) -> Tensor:
    """Return the loss of the coarse embedding in one volume (methods.md 5.3).

    Args:
        cells: coarse cells of both views.
        elsewhere: (G, d) unit vectors of other volumes, negatives of all queries; G may be 0.
        elsewhere_usable: (G,) bool; the others are filling.
        pairs: queries and positives.
        ignore_mm: cells nearer to a query are not negatives.
        ranked: number of hardest candidates in the volume.
        drawn: number of negatives among them.
        temperature: T.
        generator: source of the draws, on the device of the tensors.
        exclude_positive: False counts positives further away than `ignore_mm` as negatives too, as the published code
            does. Positives are up to 25 mm away, so that this is the usual case there and the loss cannot fall below
            log 2.
    """
    candidates = hard_negatives(cells, pairs, ranked, ignore_mm, (), exclude_positive)
    own = negative_similarities(cells, pairs, draw(candidates, drawn, generator))
    away = (cells.vectors[pairs.query] @ elsewhere.T).masked_fill(~elsewhere_usable, -torch.inf)
    return contrast(cells, pairs, torch.cat([own, away], dim=1), temperature)


def _nearer(rows: Tensor, columns: Tensor, distance: float) -> Tensor:
    """(r, c) bool for positions (r, 3) and (c, 3); exact, while a matrix product would lose small distances."""
    squared = torch.zeros(len(rows), len(columns), dtype=rows.dtype, device=rows.device)
    for axis in range(3):
        difference = rows[:, axis, None] - columns[:, axis]
        squared.addcmul_(difference, difference)
    return squared < distance**2
