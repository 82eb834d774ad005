from __future__ import annotations

from typing import Any

import pytest
import torch

from nnssl.core.errors import UserError
from nnssl.finetuning.segmentation import PyramidSegmentation, build_segmentation
from nnssl.networks.build import resolve_configuration
from tests.finetuning.plans import small_plans

KINDS = ("PlainConvUNet", "ResidualEncoderUNet", "FPN3dUNet")


def _build(
    kind: str = "PlainConvUNet", head: str = "linear", levels: str = "decoder", intensity: Any = None, channels: int = 1
) -> PyramidSegmentation:
    configuration = resolve_configuration(small_plans(kind, channels=channels), "3d_fullres")
    return build_segmentation({"levels": levels, "head": head, "intensity": intensity}, configuration, channels, 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["linear", "nonlinear"])
@pytest.mark.parametrize("levels", ["encoder", "decoder"])
def test_forward__takes_any_size(kind: str, head: str, levels: str) -> None:
    network = _build(kind, head, levels, channels=2).eval()
    assert network(torch.randn(1, 2, 7, 13, 18)).shape == (1, 3, 7, 13, 18)


def test_forward__pads_with_zeros_and_crops() -> None:
    network = _build().eval()
    image = torch.randn(1, 1, 7, 13, 18)
    padded = torch.zeros(1, 1, 8, 16, 20)
    padded[:, :, :7, :13, :18] = image
    torch.testing.assert_close(network(image), network(padded)[:, :, :7, :13, :18])


def test_forward__zeros_are_the_pretrainings_zeros() -> None:
    """Padding comes after the bridge: the network sees zero there, as it did around small volumes in pretraining."""
    shifted = [{"scale": 1.0, "offset": 5.0, "low": -100.0, "high": 100.0}]
    network, plain = _build(intensity=shifted).eval(), _build().eval()
    plain.load_state_dict(network.state_dict())
    image = torch.randn(1, 1, 7, 13, 18)
    torch.testing.assert_close(network(image), plain(image + 5.0))


@pytest.mark.parametrize("kind", KINDS)
def test_freeze__keeps_every_tensor_bitwise(kind: str) -> None:
    network = _build(kind, "nonlinear")
    network.freeze()
    before = {name: tensor.clone() for name, tensor in network.backbone.state_dict().items()}
    head = network.head.state_dict()["final_block.weight"].clone()
    network.train()
    optimiser = torch.optim.SGD(network.parameters(), 0.1, weight_decay=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        network(torch.randn(2, 1, 8, 16, 16)).square().mean().backward()
        optimiser.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.backbone.state_dict().items())
    assert not torch.equal(network.head.state_dict()["final_block.weight"], head)
    assert not any(module.training for module in network.backbone.modules())
    assert network.head.training


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", ["encoder", "decoder"])
def test_unfreeze__gives_a_gradient_to_all_that_it_returns(kind: str, levels: str) -> None:
    network = _build(kind, "linear", levels)
    trainable = sum(p.requires_grad for p in network.backbone.parameters())
    network.freeze()
    assert sum(p.requires_grad for p in network.backbone.parameters()) == 0
    parameters = network.train().unfreeze()
    assert len(parameters) == trainable
    assert network.backbone.training
    network(torch.randn(2, 1, 8, 16, 16)).square().mean().backward()
    assert all(p.grad is not None for p in parameters)
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)


def test_papers_network__has_the_papers_trainable_parameters() -> None:
    """methods.md 1.2: 13,117 (linear) and 968,029 (non-linear) for 13 outputs, on a backbone of 47,624,448."""
    configuration = resolve_configuration(small_plans("FPN3dUNet"), "3d_fullres")
    configuration["architecture"]["arch_kwargs"] = {
        "base_channels": 16, "num_scales": 6, "strides": [[1, 1, 1]] + [[2, 2, 2]] * 5,
    }  # fmt: skip
    for head, count in (("linear", 13_117), ("nonlinear", 968_029)):
        with torch.device("meta"):
            network = build_segmentation({"levels": "decoder", "head": head, "intensity": None}, configuration, 1, 13)
        network.freeze()
        assert sum(p.numel() for p in network.parameters() if p.requires_grad) == count
        assert sum(p.numel() for p in network.backbone.parameters()) == 47_624_448


def test_build_segmentation__refuses_the_second_stage_of_a_cascade() -> None:
    configuration = resolve_configuration(small_plans(), "3d_fullres")
    with pytest.raises(UserError, match="cascade"):
        build_segmentation({"levels": "decoder", "head": "linear", "intensity": None}, configuration, 4, 3)
