"""SwinUNETRs as published weights were trained: MONAI's network, with the patch merging of MONAI before 1.5."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from nnssl.features.model import load_pretrained
from tests.interchange.files import randomised

SMALL: dict[str, Any] = {"feature_size": 12, "depths": (1, 2, 1, 2), "num_heads": (3, 6, 12, 24), "window_size": 4}
_SIZE = (32, 32, 64)  # (z, y, x); the last stages' windows are cut to maps of 2, 2 and 4 cells


def _merged(layer: Any, x: Tensor) -> Tensor:
    corners = [x[:, 0::2, 0::2, 0::2], x[:, 1::2, 0::2, 0::2], x[:, 0::2, 1::2, 0::2], x[:, 0::2, 0::2, 1::2]]
    corners += [x[:, 1::2, 0::2, 1::2], x[:, 0::2, 1::2, 0::2], x[:, 0::2, 0::2, 1::2], x[:, 1::2, 1::2, 1::2]]
    result: Tensor = layer.reduction(layer.norm(torch.cat(corners, dim=-1)))
    return result


def published_swin(is_v2: bool) -> Any:
    """A small network with random values, in evaluation mode."""
    from monai.networks.nets.swin_unetr import SwinUNETR

    torch.manual_seed(0)
    network: Any = randomised(SwinUNETR(in_channels=1, out_channels=2, use_v2=is_v2, **SMALL))
    return network


def _merging_as_before(network: Any) -> Any:
    for number in range(1, 5):
        layer = getattr(network.swinViT, f"layers{number}")[0].downsample
        layer.forward = MethodType(_merged, layer)
    return network


def assert_same_swin_maps(run: Path, network: Any, maps: Callable[[Any, Tensor], list[Tensor]]) -> None:
    """As `assert_same_maps`, in float64: the norms of the coarsest maps, of few cells, amplify rounding."""
    model: Any = load_pretrained(run).double()
    source = _merging_as_before(deepcopy(network).double())
    x = torch.randn(1, 1, *_SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        found, expected = model(x), maps(source, x.transpose(2, 4))
    assert len(found) == len(expected) > 1
    for own, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(own, theirs.transpose(2, 4), atol=1e-5, rtol=1e-5)


def encoder_maps(network: Any, x: Tensor) -> list[Tensor]:
    """The outputs of the five convolution blocks of the encoder."""
    stages = network.swinViT(x, True)
    return [network.encoder1(x), network.encoder2(stages[0]), network.encoder3(stages[1]),
            network.encoder4(stages[2]), network.encoder10(stages[4])]  # fmt: skip


def decoder_maps(network: Any, x: Tensor) -> list[Tensor]:
    """The outputs of the decoder's stages and the bottleneck, finest first."""
    one, two, three, four, bottom = encoder_maps(network, x)
    maps = [bottom]
    skips = (network.swinViT(x, True)[3], four, three, two, one)
    for name, skip in zip(("decoder5", "decoder4", "decoder3", "decoder2", "decoder1"), skips, strict=True):
        maps.append(getattr(network, name)(maps[-1], skip))
    return maps[::-1]
