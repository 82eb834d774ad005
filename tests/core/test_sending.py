import torch

from nnssl.core.pretended_card import CARD, pretended_card
from nnssl.core.sending import Arrival, pack, send, unpack
from tests.cards import pretends_a_card

_TENSORS = [
    torch.arange(5),
    torch.tensor([True, False, True]),
    torch.rand(2, 3, 1),
    torch.zeros(0, dtype=torch.int64),
    torch.rand(2, 1, dtype=torch.float64).expand(2, 4),
    torch.tensor(7.0),
]


def test_unpack__gives_back_what_was_packed() -> None:
    for back, given in zip(unpack(pack(_TENSORS), _TENSORS), _TENSORS, strict=True):
        assert back.dtype == given.dtype and torch.equal(back, given)


@pretends_a_card
def test_send__to_a_card_is_one_transfer_that_nobody_waits_for() -> None:
    copies = []
    with pretended_card() as card:
        sent = send(_TENSORS, CARD)
        copies = [(x.device, x.dtype, x.shape) for x in sent]
    assert not card.waits
    assert copies == [(CARD, x.dtype, x.shape) for x in _TENSORS]
    assert card.bytes <= 512  # one block


def test_send__on_a_cpu_copies_nothing() -> None:
    assert all(a is b for a, b in zip(send(_TENSORS, torch.device("cpu")), _TENSORS, strict=True))


def test_arrival__reads_the_values() -> None:
    assert Arrival(torch.tensor([1.0, 2.0])).read().tolist() == [1.0, 2.0]


@pretends_a_card
def test_arrival__of_a_card_is_not_waited_for() -> None:
    with pretended_card() as card:
        assert Arrival(torch.zeros(3, device=CARD)).read().shape == (3,)
    assert not card.waits
