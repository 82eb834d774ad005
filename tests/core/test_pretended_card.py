import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnssl.core.pretended_backward import backward
from nnssl.core.pretended_card import CARD, pretended_card
from tests.cards import pretends_a_card

pytestmark = pretends_a_card


class _Net(nn.Module):
    """Broadcasts, a used-twice layer, a checkpoint and a frozen branch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.shift = nn.Linear(3, 5), nn.Linear(5, 5), nn.Parameter(torch.ones(5))

    def forward(self, x: Tensor) -> Tensor:
        hidden: Any = checkpoint(lambda t: self.second(self.first(t).relu()), x, use_reentrant=False)
        return (self.second(hidden) + self.shift).chunk(2)[0].double().square().mean()


def test_backward__gives_the_gradients_of_the_engine() -> None:
    torch.manual_seed(0)
    net, x = _Net(), torch.randn(4, 3)
    twin = copy.deepcopy(net)
    net(x).backward()
    backward(twin(x))
    for mine, theirs in zip(twin.parameters(), net.parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=0, atol=0)


def test_card__sees_what_the_host_waits_for() -> None:
    with pretended_card() as card:
        x = torch.zeros(3, 4, device=CARD)
        x.sum().item()
        x[x > 0]
        torch.zeros(3).to(CARD)
        torch.zeros(3).pin_memory().to(CARD, non_blocking=True)
        x.to("cpu", non_blocking=True)
        x.mul_(2.0)
        x[x > 0] = 1.0
    assert [wait.what for wait in card.waits] == ["value read", "index", "blocking copy from the host"]


def test_card__counts_memory_and_operations() -> None:
    with pretended_card() as card:
        x = torch.zeros(1024, 256, device=CARD)  # 1 MiB
        card.begin()
        y = x @ x.T  # 4 MiB
        assert (card.bytes, card.peak_bytes) == (5 * 2**20, 5 * 2**20)
        view = y[0]
        del y
        assert card.bytes == 5 * 2**20  # the view keeps it
        del view
        assert (card.bytes, card.peak_bytes, card.flop) == (2**20, 5 * 2**20, 2 * 1024 * 1024 * 256)


def test_card__refuses_what_is_elsewhere() -> None:
    with pretended_card() as card:
        net = card.take(nn.Linear(4, 2))
        net(torch.zeros(3, 4, device=CARD))
        with pytest.raises(RuntimeError, match="device"):
            net(torch.zeros(3, 4))


def test_card__is_left_as_it_was() -> None:
    before = torch.autograd.backward
    with pretended_card():
        pass
    assert torch.autograd.backward is before and torch.zeros(2).device.type == "cpu"
