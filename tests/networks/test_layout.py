"""Layouts on another device than a CPU, for which the device `meta` stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn, optim

from nnssl.methods.base import MethodConfig
from nnssl.networks.layout import InFastLayout, in_fast_layout
from nnssl.networks.stunet import STUNetPyramid
from nnssl.networks.unet3d import UNet3DPyramid
from nnssl.pretraining.optimisation import build_optimiser, load_optimiser


class _Parts(InFastLayout):
    def __init__(self) -> None:
        super().__init__()
        self.other, self.own = nn.Conv3d(2, 3, 3), nn.Conv3d(2, 3, 3)
        self.lay_out()

    @property
    def laid_out(self) -> nn.Module:
        return self.own


NETWORKS: list[Callable[[], nn.Module]] = [
    lambda: UNet3DPyramid(base_channels=2),
    lambda: STUNetPyramid(dims=(2, 4, 4, 4, 4, 4)),
]


def _layouts(tensors: Sequence[Tensor], wanted: torch.memory_format) -> set[bool]:
    return {t.is_contiguous(memory_format=wanted) for t in tensors if t.dim() == 5 and min(t.shape) > 1}


@pytest.mark.parametrize("build", NETWORKS)
def test_in_fast_layout__weights_and_maps_follow_the_device(build: Callable[[], nn.Module]) -> None:
    network = build()
    weights = list(network.parameters())
    values = [w.detach().clone() for w in weights]
    assert _layouts(weights, torch.channels_last_3d) == {True}
    away = build().eval().to("meta")
    assert _layouts(list(away.parameters()), torch.contiguous_format) == {True}
    maps = away(torch.empty(2, 1, 64, 64, 64, device="meta").contiguous())
    assert _layouts(maps, torch.contiguous_format) == {True}
    assert all(torch.equal(a, b) for a, b in zip(values, network.double().float().parameters(), strict=True))
    assert _layouts(list(network.parameters()), torch.channels_last_3d) == {True}


def test_in_fast_layout__a_part_alone() -> None:
    module = _Parts()
    assert module.own.weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert module.other.weight.is_contiguous()
    module.to("meta")
    assert module.own.weight.is_contiguous() and module.other.weight.is_contiguous()


def test_in_fast_layout__volumes() -> None:
    x = torch.rand(2, 3, 4, 5, 6)
    assert in_fast_layout(x).is_contiguous(memory_format=torch.channels_last_3d)
    assert in_fast_layout(x.to("meta").contiguous(memory_format=torch.channels_last_3d)).is_contiguous()
    assert torch.equal(in_fast_layout(x), x)


def test_load_optimiser__states_take_the_layout_of_their_weights() -> None:
    def stepped(layout: torch.memory_format) -> tuple[nn.Module, optim.Optimizer]:
        torch.manual_seed(0)
        module = nn.Conv3d(2, 3, 3).to(memory_format=layout)
        optimiser = build_optimiser(MethodConfig(), module.parameters())
        module(torch.rand(1, 2, 4, 4, 4)).sum().backward()
        optimiser.step()
        return module, optimiser

    (there, saved), (here, loaded) = stepped(torch.channels_last_3d), stepped(torch.contiguous_format)
    load_optimiser(loaded, saved.state_dict())
    for old, new in zip(there.parameters(), here.parameters(), strict=True):
        for name, value in saved.state[old].items():
            assert torch.equal(value, loaded.state[new][name])
            assert loaded.state[new][name].stride() in (new.stride(), ())
