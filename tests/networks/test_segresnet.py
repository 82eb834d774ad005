from __future__ import annotations

from typing import Any

import pytest
import torch

from nnssl.core.errors import UserError
from nnssl.networks.segresnet import SegResNet, SegResNetDS, SegResNetDSPyramid, SegResNetPyramid
from tests.networks.helpers import count_parameters

STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
SMALL: dict[str, Any] = {"init_filters": 8, "blocks_down": (1, 2, 1)}


def test_networks__have_the_published_sizes() -> None:
    with torch.device("meta"):
        suprem = SegResNetPyramid(levels="decoder")
        ct_fm = SegResNetDSPyramid().encoder
    assert round(count_parameters(suprem) / 1e6, 2) == 4.70
    assert int(count_parameters(ct_fm) / 1e6) == 77


def test_segresnet__computes_what_monais_computes() -> None:
    from monai.networks.nets import SegResNet as MonaiSegResNet

    torch.manual_seed(0)
    mine = SegResNet(2, 3, strides=STRIDES, blocks_up=(1, 2), **SMALL).eval()
    theirs = MonaiSegResNet(in_channels=2, out_channels=3, blocks_up=(1, 2), **SMALL).eval()
    state = {name.removeprefix("backbone."): tensor for name, tensor in mine.state_dict().items()}
    for kind in ("weight", "bias"):
        state[f"conv_final.2.conv.{kind}"] = state.pop(f"decoder.seg_layers.0.{kind}")
    theirs.load_state_dict(state)
    x = torch.randn(1, 2, 8, 12, 4)
    with torch.no_grad():
        torch.testing.assert_close(mine(x), theirs(x))
        encoder = SegResNetPyramid(2, blocks_up=(1, 2), **SMALL).eval()
        encoder.load_state_dict(mine.backbone.state_dict())
        for mine_level, expected in zip(encoder(x), theirs.encode(x)[1], strict=True):
            torch.testing.assert_close(mine_level, expected)


@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_segresnet_ds__computes_what_monais_computes(norm: str) -> None:
    from monai.networks.nets.segresnet_ds import SegResNetDS as MonaiSegResNetDS

    torch.manual_seed(0)
    mine = SegResNetDS(2, 3, True, strides=STRIDES, norm=norm, **SMALL).eval()
    theirs = MonaiSegResNetDS(in_channels=2, out_channels=3, norm=norm, dsdepth=2, **SMALL)
    state = {name.removeprefix("backbone."): tensor for name, tensor in mine.state_dict().items()}
    for number, kind in ((0, "weight"), (0, "bias"), (1, "weight"), (1, "bias")):
        state[f"up_layers.{number}.head.{kind}"] = state.pop(f"decoder.seg_layers.{number}.{kind}")
    theirs.load_state_dict(state)
    x = torch.randn(1, 2, 8, 12, 4)
    with torch.no_grad():
        outputs, expected = mine(x), theirs.train().requires_grad_(False)
        for layer in expected.modules():
            layer.training = layer is expected  # all scales, with the running statistics
        for found, wanted in zip(outputs, expected(x), strict=True):
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kind", [SegResNetPyramid, SegResNetDSPyramid])
def test_pyramid__refuses_numbers_that_do_not_fit(kind: Any) -> None:
    with pytest.raises(UserError, match="blocks_down"):
        kind(1, blocks_down=(1, 2), blocks_up=(1, 1))
    with pytest.raises(UserError, match=r"init_filters|norm"):
        kind(1, **({"init_filters": 12} if kind is SegResNetPyramid else {"norm": "layer"}))
