"""What networks whose public weights can be imported have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnssl.core.errors import UserError
from nnssl.networks.build import backbone_of
from tests.networks.helpers import build_network, state_dict_shapes

HALVING = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]
NETWORKS: dict[str, dict[str, Any]] = {
    "segresnet.SegResNet": {"init_filters": 8, "blocks_down": [1, 2, 1], "blocks_up": [1, 1], "strides": HALVING},
    "segresnet.SegResNetDS": {"init_filters": 4, "blocks_down": [1, 2, 1], "strides": HALVING},
    "stunet.STUNet": {"dims": [4, 6, 8], "depth": [1, 2, 1], "strides": [[1, 1, 1], [2, 2, 2], [1, 1, 2]]},
    "unet3d.UNet3D": {"base_channels": 2, "strides": [*HALVING, [2, 2, 2]]},
}


def _configuration(name: str) -> dict[str, Any]:
    return {
        "patch_size": [8, 16, 16],
        "normalization_schemes": ["CTNormalization", "ZScoreNormalization"],
        "architecture": {
            "network_class_name": f"nnssl.networks.{name}",
            "arch_kwargs": NETWORKS[name],
            "_kw_requires_import": [],
        },
    }


@pytest.mark.parametrize("levels", ["encoder", "decoder"])
@pytest.mark.parametrize("name", NETWORKS)
def test_pyramid__maps_have_the_stated_channels_and_strides(name: str, levels: Any) -> None:
    torch.manual_seed(0)
    pyramid = backbone_of(_configuration(name), levels)
    maps = pyramid(torch.randn(1, 2, 8, 16, 24))
    for feature_map, channels, stride in zip(maps, pyramid.channels, pyramid.strides, strict=True):
        assert feature_map.shape == (1, channels, 8 // stride[0], 16 // stride[1], 24 // stride[2])
    sum(feature_map.square().mean() for feature_map in maps).backward()
    silent = {name for name, p in pyramid.named_parameters() if p.grad is None}
    assert silent == {name for name, _ in pyramid.named_parameters() if name.startswith(pyramid.unused)}
    assert silent == {name for name, p in pyramid.named_parameters() if not p.requires_grad}
    assert bool(silent) == (levels == "encoder")
    pyramid.leave_out_finer(1)
    torch.testing.assert_close(pyramid(torch.ones(2, 2, 8, 16, 16))[1].shape[:2], (2, pyramid.channels[1]))
    with pytest.raises(UserError, match="patch size 9,16,16"):
        pyramid.check_patch((9, 16, 16))


@pytest.mark.parametrize("name", NETWORKS)
def test_network__stock_nnunet_trains_it_with_deep_supervision(name: str) -> None:
    torch.manual_seed(0)
    architecture = _configuration(name)["architecture"]
    network: Any = get_network_from_plans(
        architecture["network_class_name"], architecture["arch_kwargs"], [], 2, 3, deep_supervision=True
    )
    x = torch.randn(2, 2, 8, 16, 16)
    scales = 1 / np.cumprod(np.vstack(architecture["arch_kwargs"]["strides"]), axis=0)[:-1]  # as nnUNetTrainer counts
    targets = [torch.zeros(2, 3, *(round(n * s) for n, s in zip(x.shape[2:], scale, strict=True))) for scale in scales]
    outputs = network(x)
    DeepSupervisionWrapper(torch.nn.MSELoss(), np.ones(len(targets)))(outputs, targets).backward()
    assert all(p.grad is not None for p in network.parameters())
    network.eval()
    network.decoder.deep_supervision = False  # as nnUNetTrainer.set_deep_supervision_enabled does
    plans = {"configurations": {"3d_fullres": _configuration(name)}}
    ours = build_network(plans, "3d_fullres", 3)
    assert state_dict_shapes(ours) == state_dict_shapes(network)
    ours.load_state_dict(network.state_dict())
    torch.testing.assert_close(ours.eval()(x), network(x))
