from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from nnssl.methods.sam.loss import Cells, Negatives, Pairs, coarse_loss, contrast, draw, fine_loss, hard_negatives
from nnssl.methods.sam.loss import negative_similarities as similarities
from tests.networks.helpers import load_reference

REFERENCE = load_reference("sam.json")
NONE = torch.zeros(0, 3, dtype=torch.float64), torch.zeros(0, dtype=torch.bool)


def _cells(entry: dict[str, Any]) -> list[Cells]:
    """The cells of every two views of a reference vector; its grids are (y, x, z)."""
    vectors = torch.tensor(entry["embeddings_first3_of_128"], dtype=torch.float64).flatten(2).transpose(1, 2)
    places = torch.tensor(entry["grid_mm_yxz"], dtype=torch.float64).flatten(2).transpose(1, 2)[:, :, [2, 0, 1]]
    everywhere = torch.ones(2 * vectors.shape[1], dtype=torch.bool)
    return [Cells(torch.cat([*vectors[i : i + 2]]), torch.cat([*places[i : i + 2]]), everywhere)
            for i in range(0, len(vectors), 2)]  # fmt: skip


def _nearest(cells: Cells, query: Tensor) -> Pairs:
    """The nearest cells of the other view."""
    half = len(cells.places) // 2
    distance = torch.cdist(cells.places[query], cells.places)
    same_view = (query[:, None] < half) == (torch.arange(2 * half) < half)
    return Pairs(query, distance.masked_fill(same_view, math.inf).argmin(1), torch.ones(len(query), dtype=torch.bool))


def _zeroed(similarity: Tensor) -> Tensor:
    """What the published code does with ignored cells of the coarse map."""
    return similarity.masked_fill(similarity.isinf(), 0.0)


def test_coarse_loss__reference() -> None:
    entry = REFERENCE["coarse_loss"]
    volumes = _cells(entry)
    repaired, published = [], []
    for own, other in (volumes, volumes[::-1]):
        pairs = _nearest(own, torch.arange(8))
        elsewhere = other.vectors, other.usable
        repaired.append(coarse_loss(own, *elsewhere, pairs, exclude_positive=False))
        candidates = hard_negatives(own, pairs, 250, 5.0, exclude_positive=False)
        negatives = [_zeroed(similarities(own, pairs, candidates)), own.vectors[pairs.query] @ other.vectors.T]
        published.append(contrast(own, pairs, torch.cat(negatives, 1), 0.5))
        # the positive is no negative of its own in what is trained
        assert coarse_loss(own, *elsewhere, pairs) < repaired[-1]
    assert torch.stack(repaired).mean().item() == pytest.approx(entry["negatives_excluded_instead_of_zeroed"], abs=1e-9)
    assert torch.stack(published).mean().item() == pytest.approx(entry["independent_code"], abs=1e-9)


def test_fine_loss__reference() -> None:
    entry = REFERENCE["fine_loss"]
    (cells,) = _cells(entry)
    # The embeddings are given with 7 digits; the four queries are those that the reference run happened to draw.
    pairs = _nearest(cells, torch.tensor([6, 7, 8, 9]))
    assert torch.equal(pairs.positive, torch.tensor([13, 14, 1, 2]))
    repaired = fine_loss(cells, None, pairs, entry["ignore_distance"], temperature=entry["temperature"])
    assert repaired.item() == pytest.approx(entry["ignored_excluded"], abs=1e-6)
    everything = torch.arange(16).expand(4, 16)
    published = contrast(
        cells, pairs, similarities(cells, pairs, Negatives(everything, torch.ones(4, 16, dtype=torch.bool))), 0.5
    )
    assert published.item() == pytest.approx(entry["independent_code"], abs=1e-6)


def _line(usable: list[bool] | None = None) -> tuple[Cells, Pairs]:
    """Ten cells 1 mm apart, more and more unlike the first one; cell 5 is its positive."""
    angle = torch.linspace(0, math.pi, 10, dtype=torch.float64)
    places = torch.stack([torch.arange(10.0), torch.zeros(10), torch.zeros(10)], 1).double()
    cells = Cells(torch.stack([angle.cos(), angle.sin()], 1), places, torch.tensor(usable or [True] * 10))
    return cells, Pairs(torch.tensor([0]), torch.tensor([5]), torch.tensor([True]))


def test_hard_negatives__most_similar_first_without_the_near_the_padding_and_the_positive() -> None:
    cells, pairs = _line([True] * 7 + [False] + [True] * 2)
    found = hard_negatives(cells, pairs, 10, 2.5)
    assert found.cells[0, :5].tolist() == [3, 4, 6, 8, 9]
    assert found.real[0].tolist() == [True] * 5 + [False] * 5
    assert hard_negatives(cells, pairs, 2, 2.5).cells.tolist() == [[3, 4]]
    assert hard_negatives(cells, pairs, 3, 2.5, exclude_positive=False).cells.tolist() == [[3, 4, 5]]


def test_hard_negatives__exactly_the_ignore_distance_away_is_a_negative() -> None:
    assert hard_negatives(*_line(), 1, 3.0).cells.tolist() == [[3]]


def test_hard_negatives__rank_by_the_sum_of_both_similarities() -> None:
    cells, pairs = _line()
    other = torch.zeros(10, 2, dtype=torch.float64)
    other[0, 0] = other[9, 0] = other[8, 1] = 1.0
    ranked = hard_negatives(cells, pairs, 10, 2.5, (3 * other,)).cells[0].tolist()
    assert ranked[:2] == [9, 3]


def test_hard_negatives__chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    cells = Cells(torch.randn(40, 4), 10 * torch.rand(40, 3), torch.rand(40) < 0.9)
    query = torch.arange(20)
    pairs = Pairs(query, query + 20, torch.ones(20, dtype=torch.bool))
    whole = hard_negatives(cells, pairs, 12, 3.0)
    monkeypatch.setattr("nnssl.methods.sam.loss._CPU_CHUNK", 3 * 40)
    parts = hard_negatives(cells, pairs, 12, 3.0)
    assert torch.equal(whole.real, parts.real) and torch.equal(whole.cells[whole.real], parts.cells[parts.real])


def test_draw__real_negatives_only_while_there_are_enough() -> None:
    cells = torch.arange(1000).expand(3, 1000)
    real = torch.rand(3, 1000, generator=torch.Generator().manual_seed(0)) < 0.3
    generator = torch.Generator().manual_seed(1)
    drawn = draw(Negatives(cells, real), 100, generator)
    assert drawn.real.all() and all(len(row.unique()) == 100 for row in drawn.cells)
    assert real.gather(1, drawn.cells).all()
    again = draw(Negatives(cells, real), 100, torch.Generator().manual_seed(1))
    assert torch.equal(drawn.cells, again.cells)
    assert not torch.equal(drawn.cells, draw(Negatives(cells, real), 100, generator).cells)
    few = draw(Negatives(cells, real), 500, generator)
    assert torch.equal(few.real.sum(1), real.sum(1))


def test_draw__every_candidate_is_as_likely() -> None:
    candidates = Negatives(torch.arange(20).expand(4000, 20), torch.ones(4000, 20, dtype=torch.bool))
    counts = draw(candidates, 5, torch.Generator().manual_seed(0)).cells.flatten().bincount(minlength=20)
    assert ((counts / 4000 - 0.25).abs() < 0.04).all()


@pytest.mark.parametrize("count", [2, 12])
def test_negative_similarities__both_ways_agree_in_value_and_gradient(count: int) -> None:
    torch.manual_seed(0)
    vectors = torch.randn(30, 4, dtype=torch.float64, requires_grad=True)
    cells = Cells(vectors, torch.zeros(30, 3), torch.ones(30, dtype=torch.bool))
    pairs = Pairs(torch.arange(5), torch.arange(5) + 5, torch.ones(5, dtype=torch.bool))
    chosen = torch.randint(30, (5, count))
    real = torch.rand(5, count) < 0.7
    values = similarities(cells, pairs, Negatives(chosen, real))
    expected = torch.einsum("qd,qkd->qk", vectors[:5], vectors[chosen])
    torch.testing.assert_close(values[real], expected[real])
    assert (values[~real] == -math.inf).all()
    (gradient,) = torch.autograd.grad(values[real].square().sum(), vectors)
    (wanted,) = torch.autograd.grad(expected[real].square().sum(), vectors)
    torch.testing.assert_close(gradient, wanted)


def test_contrast__removed_candidates_have_no_weight_and_no_gradient() -> None:
    vectors = torch.eye(3, dtype=torch.float64).requires_grad_()
    cells = Cells(vectors, torch.zeros(3, 3), torch.ones(3, dtype=torch.bool))
    pairs = Pairs(torch.tensor([0]), torch.tensor([1]), torch.tensor([True]))
    loss = contrast(cells, pairs, torch.full((1, 4), -math.inf, dtype=torch.float64), 0.5)
    assert loss.item() == 0
    loss.backward()
    assert vectors.grad is not None and vectors.grad.isfinite().all() and not vectors.grad.any()


def test_contrast__mean_over_the_valid_queries_only() -> None:
    cells, _ = _line()
    negatives = torch.tensor([[0.5, 0.1], [0.9, 0.8]], dtype=torch.float64)
    both = Pairs(torch.tensor([0, 1]), torch.tensor([5, 6]), torch.tensor([True, False]))
    one = Pairs(*(column[:1] for column in both))
    torch.testing.assert_close(contrast(cells, both, negatives, 0.5), contrast(cells, one, negatives[:1], 0.5))


@pytest.mark.parametrize("queries", [0, 3])
def test_losses__no_valid_query_is_an_attached_zero(queries: int) -> None:
    torch.manual_seed(0)
    vectors = torch.randn(10, 3, dtype=torch.float64, requires_grad=True)
    cells = Cells(vectors, torch.zeros(10, 3), torch.ones(10, dtype=torch.bool))
    query = torch.arange(queries)
    pairs = Pairs(query, query + 3, torch.zeros(queries, dtype=torch.bool))
    for loss in (fine_loss(cells, None, pairs), coarse_loss(cells, *NONE, pairs)):
        assert loss.item() == 0
        (gradient,) = torch.autograd.grad(loss, vectors, retain_graph=True)
        assert gradient.isfinite().all() and not gradient.any()


def test_coarse_loss__cells_of_other_volumes_that_only_fill_up_do_not_count() -> None:
    cells, pairs = _line()
    elsewhere = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    one = coarse_loss(cells, elsewhere[:1], torch.tensor([True]), pairs)
    both = coarse_loss(cells, elsewhere, torch.tensor([True, False]), pairs)
    torch.testing.assert_close(one, both)
    assert one > coarse_loss(cells, elsewhere[:0], torch.ones(0, dtype=torch.bool), pairs)
