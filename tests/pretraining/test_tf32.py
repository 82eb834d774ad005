from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnssl.networks.fpn_unet import FPN3d
from nnssl.pretraining.tf32 import exact_products, use_tf32

_CARD = torch.device("cuda")
Notes = set[tuple[str, bool]]  # parts of a step, and whether products are in TF32 there


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


class _Noted(torch.autograd.Function):
    """The same values; notes whether products are in TF32, in both passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, name: str, notes: Notes) -> Tensor:
        ctx.name, ctx.notes = name, notes
        notes.add((f"{name} forward", torch.backends.cuda.matmul.allow_tf32))
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        ctx.notes.add((f"{ctx.name} backward", torch.backends.cuda.matmul.allow_tf32))
        return gradient, None, None


def _step(device: torch.device, precision: torch.dtype) -> Notes:
    """Notes of a step in which the network runs twice, once in parts that are computed again."""
    notes: Notes = set()
    network = FPN3d(1, 2, 3)
    in_tf32 = use_tf32(nn.ModuleList([network]), device, precision)
    first: Any = network.first_conv
    first.register_forward_hook(lambda module, inputs, x: _Noted.apply(x, "network", notes))
    x = torch.randn(2, 1, 8, 8, 8)
    levels = network(x)
    again = checkpoint(lambda y: network(y)[-1], x, use_reentrant=False)
    loss = _Noted.apply(levels[0].mean() + levels[-1].square().mean() * again.mean(), "loss", notes)
    notes.add(("loss", torch.backends.cuda.matmul.allow_tf32))
    loss.backward()
    if in_tf32:
        exact_products()
    notes.add(("after", torch.backends.cuda.matmul.allow_tf32))
    return notes


def test_use_tf32__is_for_the_network_and_not_for_the_loss() -> None:
    assert _step(_CARD, torch.float32) == {
        ("network forward", True),
        ("network backward", True),
        ("loss forward", False),
        ("loss", False),
        ("loss backward", False),
        ("after", False),
    }


@pytest.mark.parametrize(("device", "precision"), [("cpu", torch.float32), ("cuda", torch.bfloat16)])
def test_use_tf32__changes_nothing_elsewhere(device: str, precision: torch.dtype) -> None:
    assert not any(on for _, on in _step(torch.device(device), precision))


def test_use_tf32__an_error_within_the_network_leaves_float32() -> None:
    network = FPN3d(1, 2, 3)
    use_tf32(network, _CARD, torch.float32)
    with pytest.raises(RuntimeError):
        network(torch.zeros(1, 3, 8, 8, 8))
    assert not torch.backends.cuda.matmul.allow_tf32


def test_use_tf32__compiled_networks_keep_float32() -> None:
    network = FPN3d(1, 2, 3)
    network.compile(backend="eager")
    assert not use_tf32(network, _CARD, torch.float32)
    assert not network._forward_pre_hooks
