from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nnssl.core.errors import UserError
from nnssl.networks.stunet import STUNet, STUNetPyramid
from tests.networks.helpers import count_parameters

STRIDES = [[1, 1, 1], [2, 2, 2], [1, 1, 2]]
SMALL: dict[str, Any] = {"dims": (4, 6, 8), "depth": (2, 1, 1), "strides": STRIDES}


@pytest.mark.parametrize(
    ("width", "blocks", "millions"), [(16, 1, 14.60), (32, 1, 58.26), (64, 2, 440.30), (96, 3, 1457.33)]
)
def test_stunet__has_the_published_sizes(width: int, blocks: int, millions: float) -> None:
    dims = [width * factor for factor in (1, 2, 4, 8, 16, 16)]
    strides = [[1, 1, 1], *[[2, 2, 2]] * 4, [1, 1, 2]]
    with torch.device("meta"):
        network = STUNet(1, 105, strides=strides, dims=dims, depth=[blocks] * 6)
    assert round(count_parameters(network) / 1e6, 2) == millions


def _block(state: dict[str, Tensor], name: str, x: Tensor, stride: Any = 1) -> Tensor:
    """A residual block from its published description."""

    def part(y: Tensor, conv: str, norm: str, step: Any) -> Tensor:
        y = F.conv3d(y, state[f"{name}.{conv}.weight"], state[f"{name}.{conv}.bias"], step, padding=1)
        return F.instance_norm(y, weight=state[f"{name}.{norm}.weight"], bias=state[f"{name}.{norm}.bias"])

    inner = part(F.leaky_relu(part(x, "conv1", "norm1", stride)), "conv2", "norm2", 1)
    if f"{name}.conv3.weight" in state:
        x = F.conv3d(x, state[f"{name}.conv3.weight"], state[f"{name}.conv3.bias"], stride)
    return F.leaky_relu(inner + x)


def test_pyramid__is_the_published_network() -> None:
    torch.manual_seed(0)
    pyramid = STUNetPyramid(2, **SMALL, levels="decoder")
    with torch.no_grad():
        for parameter in pyramid.parameters():
            parameter.normal_(std=0.3)
    state = {name: tensor.detach() for name, tensor in pyramid.state_dict().items()}
    x = torch.randn(2, 2, 6, 8, 12)
    fine = _block(state, "conv_blocks_context.0.1", _block(state, "conv_blocks_context.0.0", x))
    middle = _block(state, "conv_blocks_context.1.0", fine, 2)
    coarse = _block(state, "conv_blocks_context.2.0", middle, (1, 1, 2))

    def raised(number: int, y: Tensor, skip: Tensor, factor: Any) -> Tensor:
        name = f"upsample_layers.{number}.conv"
        y = F.conv3d(F.interpolate(y, scale_factor=factor), state[f"{name}.weight"], state[f"{name}.bias"])
        return _block(state, f"conv_blocks_localization.{number}.0", torch.cat([y, skip], dim=1))

    up = raised(0, coarse, middle, (1.0, 1.0, 2.0))
    top = _block(state, "conv_blocks_localization.1.1", raised(1, up, fine, 2.0))
    with torch.no_grad():
        decoded = pyramid(x)
    for found, expected in zip(decoded, (top, up, coarse), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    encoder = STUNetPyramid(2, **SMALL)
    encoder.load_state_dict(pyramid.state_dict())
    for found, expected in zip(encoder(x), (fine, middle, coarse), strict=True):
        torch.testing.assert_close(found.detach(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "wrong", [{"dims": (4, 8)}, {"depth": (1, 0, 1)}, {"strides": [[2, 2, 2], [2, 2, 2], [2, 2, 2]]}]
)
def test_pyramid__refuses_numbers_that_do_not_fit(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"STU-Net"):
        STUNetPyramid(1, **{**SMALL, **wrong})
