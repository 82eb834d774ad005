from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnssl.core.errors import UserError
from nnssl.networks.fpn_unet import FPN3dUNet
from tests.networks.helpers import fpn_configuration

SCALES = 4


def _network(deep_supervision: bool | None) -> Any:
    architecture = fpn_configuration(SCALES, 4)["architecture"]
    torch.manual_seed(0)
    return get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        1,
        3,
        deep_supervision=deep_supervision,
    )


@pytest.mark.parametrize("deep_supervision", [False, None])
def test_fpn_unet__gives_logits(deep_supervision: bool | None) -> None:
    network = _network(deep_supervision)
    assert isinstance(network, FPN3dUNet)
    assert network(torch.randn(2, 1, 8, 16, 16)).shape == (2, 3, 8, 16, 16)


def test_fpn_unet__gives_one_output_per_target_of_nnunet() -> None:
    network = _network(True)
    strides = fpn_configuration(SCALES, 4)["architecture"]["arch_kwargs"]["strides"]
    scales = 1 / np.cumprod(np.vstack(strides), axis=0)[:-1]  # nnUNetTrainer._get_deep_supervision_scales
    outputs = network(torch.randn(2, 1, 8, 16, 16))
    expected = [tuple(np.round(np.array([8, 16, 16]) * scale).astype(int)) for scale in scales]
    assert [tuple(output.shape[2:]) for output in outputs] == expected


def test_fpn_unet__switching_deep_supervision_keeps_the_first_output() -> None:
    network = _network(True).eval()
    x = torch.randn(1, 1, 8, 8, 8)
    deep = network(x)
    network.decoder.deep_supervision = False  # as nnUNetTrainer.set_deep_supervision_enabled does
    torch.testing.assert_close(network(x), deep[0], rtol=0, atol=0)


def test_fpn_unet__orders_segmentation_layers_as_nnunet() -> None:
    assert [layer.in_channels for layer in _network(True).decoder.seg_layers] == [16, 8, 4]


def test_fpn_unet__every_parameter_learns_under_deep_supervision() -> None:
    network = _network(True)
    sum((output**2).sum() for output in network(torch.randn(2, 1, 8, 8, 8))).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_fpn_unet__only_segmentation_layers_depend_on_the_classes() -> None:
    strides = [[1, 1, 1], [2, 2, 2]]
    two, five = (FPN3dUNet(1, classes, 4, 2, strides).state_dict() for classes in (2, 5))
    different = {name for name in two if two[name].shape != five[name].shape}
    assert different
    assert all(".seg_layers." in name for name in different)


@pytest.mark.parametrize("strides", [[[1, 1, 1], [1, 2, 2]], [[1, 1, 1]]])
def test_fpn_unet__refuses_other_strides(strides: list[list[int]]) -> None:
    with pytest.raises(UserError, match="strides"):
        FPN3dUNet(1, 2, 4, 2, strides)
