from __future__ import annotations

import torch
from torch import Tensor

from nnssl.methods.lapn.loss import KeyQueue
from tests.networks.helpers import load_reference


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
