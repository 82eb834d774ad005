from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nnssl.methods.lapn import loss as module
from nnssl.methods.lapn.loss import KeyQueue, queue_info_nce
from tests.networks.helpers import load_reference

REFERENCE = load_reference("lapn.json")["moco_info_nce"]


def _data(n: int = 6, m: int = 40, d: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(rows, d, generator=generator, dtype=torch.float64) for rows in (n, n, m))  # type: ignore[return-value]


def _plain(q: Tensor, k: Tensor, negatives: Tensor, temperature: float, counts: Tensor | None = None) -> Tensor:
    """Cross-entropy of the positive among all logits."""
    q, k, negatives = (F.normalize(t, dim=1) for t in (q, k, negatives))
    others = q @ negatives.T
    if counts is not None:
        others = others.masked_fill(~counts, -torch.inf)
    logits = torch.cat([(q * k).sum(1, keepdim=True), others], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long), reduction="none")


@pytest.mark.parametrize("temperature", REFERENCE["by_temperature"])
def test_queue_info_nce__gives_the_reference_values(temperature: str) -> None:
    q, k, queue = (torch.tensor(REFERENCE[name], dtype=torch.float64) for name in ("q", "k_pos", "queue"))
    expected = REFERENCE["by_temperature"][temperature]
    assert queue_info_nce(q, k, queue, float(temperature)).item() == pytest.approx(expected["loss"], abs=1e-9)
    each = [queue_info_nce(a[None], b[None], queue, float(temperature)).item() for a, b in zip(q, k, strict=True)]
    assert each == pytest.approx(expected["per_query"], abs=1e-9)


@pytest.mark.parametrize("strip", [2**22, 40, 7])
@pytest.mark.parametrize("temperature", [0.07, 0.5, 1 / 100])
def test_queue_info_nce__loss_and_gradient_are_those_of_the_whole_matrix(
    monkeypatch: pytest.MonkeyPatch, strip: int, temperature: float
) -> None:
    monkeypatch.setattr(module, "_STRIP", strip)
    q, k, negatives = _data()
    results = []
    for function in (queue_info_nce, lambda *a: _plain(*a).mean()):
        leaf = q.clone().requires_grad_()
        loss = function(leaf, k, negatives, temperature)
        (gradient,) = torch.autograd.grad(3 * loss, leaf)
        results.append((loss.detach(), gradient))
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-12)


def test_queue_info_nce__only_queries_get_a_gradient() -> None:
    q, k, negatives = (t.requires_grad_() for t in _data())
    queue_info_nce(q, k, negatives, 0.07).backward()
    assert q.grad is not None and q.grad.any() and k.grad is None and negatives.grad is None


def test_queue_info_nce__near_ones_of_the_volume_and_unfilled_slots_are_no_negatives() -> None:
    q, k, negatives = _data(2, 6)
    places = torch.tensor([[3.0, 0, 0, 0], [4.0, 100, 100, 100]])
    theirs = torch.tensor([
        [3.0, 6, 8, 0],  # 10 mm: near
        [3.0, 6, 8, 1],
        [4.0, 0, 0, 0],  # another volume for the first, far for the second
        [4.0, 100, 100, 100],
        [-1.0, 0, 0, 0],  # unfilled
        [5.0, 100, 100, 100],
    ])  # fmt: skip
    counts = torch.tensor([[False, True, True, True, False, True], [True, True, True, False, False, True]])
    loss = queue_info_nce(q, k, negatives, 0.2, places, theirs, 10.0)
    torch.testing.assert_close(loss, _plain(q, k, negatives, 0.2, counts).mean(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("case", ["empty", "unfilled", "all near"])
def test_queue_info_nce__without_negatives_is_an_attached_zero(case: str) -> None:
    q, k, negatives = _data(3, 0 if case == "empty" else 5)
    q.requires_grad_()
    places = torch.zeros(3, 4)
    theirs = torch.full((len(negatives), 4), -1.0 if case == "unfilled" else 0.0)
    loss = queue_info_nce(q, k, negatives, 0.07, places, theirs, 10.0)
    loss.backward()
    assert loss.item() == 0 and q.grad is not None and not q.grad.any()


def test_queue_info_nce__without_queries_is_an_attached_zero() -> None:
    q, k, negatives = _data(0, 5)
    q.requires_grad_()
    loss = queue_info_nce(q, k, negatives, 0.07)
    loss.backward()
    assert loss.item() == 0 and q.grad is not None


def test_queue_info_nce__is_computed_in_float32_under_autocast() -> None:
    q, k, negatives = (t.float() for t in _data(4, 50, 64))
    with torch.autocast("cpu", torch.bfloat16):
        loss = queue_info_nce(q.bfloat16(), k.bfloat16(), negatives, 0.07)
    assert loss.dtype == torch.float32
    expected = queue_info_nce(q.bfloat16().double(), k.bfloat16().double(), negatives.double(), 0.07)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"keys": torch.zeros(2, 8)}, "queries and keys"), ({"negatives": torch.zeros(3, 7)}, "negatives must"),
     ({"temperature": 1e-4}, "temperature"), ({"places": torch.zeros(6, 4)}, "or neither"),
     ({"places": torch.zeros(5, 4), "places_of_negatives": torch.zeros(40, 4)}, "places must be"),
     ({"places": torch.zeros(6, 4), "places_of_negatives": torch.zeros(6, 4)}, "places_of_negatives must be")],
)  # fmt: skip
def test_queue_info_nce__refuses(changes: dict[str, Any], message: str) -> None:
    q, k, negatives = _data()
    with pytest.raises(ValueError, match=message):
        queue_info_nce(**{"queries": q, "keys": k, "negatives": negatives, "temperature": 0.07, **changes})


def _numbered(numbers: list[int]) -> tuple[Tensor, Tensor]:
    """Vectors of any length, and places that tell them apart."""
    generator = torch.Generator().manual_seed(numbers[0])
    places = torch.tensor([[1.0, n, 0, 0] for n in numbers])
    return 3 * torch.randn(len(numbers), 4, generator=generator), places


def _numbers(queue: KeyQueue) -> list[int]:
    return [int(n) for n in queue.places[:, 1].tolist()]


def test_enqueue__gives_the_reference_ring() -> None:
    ring = load_reference("lapn.json")["queue_semantics"]
    queue = KeyQueue(ring["length"], 4)
    queue.enqueue(*_numbered(ring["before"]))
    assert _numbers(queue) == ring["before"] and queue.pointer == 0
    queue.pointer.fill_(ring["pointer"])
    queue.enqueue(*_numbered(ring["enqueue"]))
    assert _numbers(queue) == ring["after"] and queue.pointer == ring["new_pointer"]


def test_enqueue__keeps_the_latest_whatever_the_number_of_rows() -> None:
    queue = KeyQueue(7, 4)
    last: list[int] = []
    for first, count in ((0, 3), (3, 1), (4, 5), (9, 7), (16, 20), (36, 2), (38, 15)):
        keys, places = _numbered(list(range(first, first + count)))
        queue.enqueue(keys, places)
        last = (last + list(range(first, first + count)))[-7:]
        filled = queue.filled()
        assert sorted(n for n, f in zip(_numbers(queue), filled.tolist(), strict=True) if f) == last
        oldest = int(queue.pointer)
        if filled.all():
            assert _numbers(queue)[oldest:] + _numbers(queue)[:oldest] == last
        torch.testing.assert_close(queue.vectors[filled].norm(dim=1), torch.ones(len(last)))


def test_enqueue__a_zero_vector_leaves_its_slot_unfilled() -> None:
    queue = KeyQueue(3, 4)
    queue.enqueue(torch.tensor([[0.0, 0, 0, 0], [0, 2, 0, 0]]), torch.tensor([[5.0, 1, 1, 1], [6.0, 2, 2, 2]]))
    assert queue.filled().tolist() == [False, True, False]
    queue.enqueue(torch.zeros(0, 4), torch.zeros(0, 4))
    assert queue.pointer == 2


def test_state__is_all_in_buffers() -> None:
    queue, again = KeyQueue(5, 4), KeyQueue(5, 4)
    queue.enqueue(*_numbered([1, 2, 3]))
    again.load_state_dict(queue.state_dict())
    for ring in (queue, again):
        ring.enqueue(*_numbered([4, 5, 6]))
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in queue.state_dict().items())
    assert not list(queue.parameters())
