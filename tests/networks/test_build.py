from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from nnssl.core.errors import UserError
from nnssl.networks.build import build_backbone
from nnssl.networks.fpn_unet import FPN3d, FPN3dUNet
from nnssl.networks.unet import UNetPyramid
from tests.networks.helpers import build_network, fpn_configuration, state_dict_shapes, unet_configuration

STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]


def _plans() -> dict[str, Any]:
    return {
        "configurations": {
            "2d": {"patch_size": [16, 16]},
            "3d_fullres": unet_configuration("PlainConvUNet", STRIDES, [4, 6, 8]),
            "3d_lowres": {"inherits_from": "3d_fullres", "normalization_schemes": ["a", "b"]},
            "residual": unet_configuration("ResidualEncoderUNet", STRIDES, [4, 6, 8]),
            "fpn": fpn_configuration(3, 4),
        }
    }


@pytest.mark.parametrize("configuration", ["3d_fullres", "residual", "fpn"])
def test_build_network__maps_an_image_to_logits(configuration: str) -> None:
    network = build_network(_plans(), configuration, 5)
    assert network(torch.randn(1, 1, 4, 8, 8)).shape == (1, 5, 4, 8, 8)


def test_build_network__inherits_and_counts_channels() -> None:
    network = build_network(_plans(), "3d_lowres", 2)
    assert network(torch.randn(1, 2, 4, 8, 8)).shape == (1, 2, 4, 8, 8)


@pytest.mark.parametrize("configuration", ["3d_fullres", "3d_lowres", "residual"])
@pytest.mark.parametrize("levels", ["encoder", "decoder"])
def test_build_backbone__unet(configuration: str, levels: Any) -> None:
    backbone = build_backbone(_plans(), configuration, levels)
    assert isinstance(backbone, UNetPyramid)
    assert backbone.levels == levels
    assert backbone.strides == ((1, 1, 1), (1, 2, 2), (2, 4, 4))
    assert backbone.input_channels == (2 if configuration == "3d_lowres" else 1)
    assert state_dict_shapes(backbone.network) == state_dict_shapes(build_network(_plans(), configuration, 2))


def test_build_backbone__reads_plans_of_old_nnunet() -> None:
    configuration = {
        "patch_size": [8, 16, 16],
        "normalization_schemes": ["ZScoreNormalization"],
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "unet_max_num_features": 6,
        "n_conv_per_stage_encoder": [1, 1, 1],
        "n_conv_per_stage_decoder": [1, 1],
        "num_pool_per_axis": [1, 2, 2],
        "pool_op_kernel_sizes": STRIDES,
        "conv_kernel_sizes": [[3, 3, 3]] * 3,
    }
    backbone = build_backbone({"configurations": {"3d_fullres": configuration}}, "3d_fullres", "decoder")
    assert backbone.channels == (4, 6, 6)
    assert backbone.strides[-1] == (2, 4, 4)


@pytest.mark.parametrize("levels", ["encoder", "decoder"])
def test_build_backbone__fpn(levels: Any) -> None:
    backbone = build_backbone(_plans(), "fpn", levels)
    assert isinstance(backbone, FPN3d)
    assert backbone.levels == levels
    segmentation = build_network(_plans(), "fpn", 2)
    assert isinstance(segmentation, FPN3dUNet)
    assert state_dict_shapes(backbone) == state_dict_shapes(segmentation.backbone)


def test_build_backbone__fpn_needs_no_nnunet() -> None:
    code = (
        "import sys; sys.modules['nnunetv2'] = sys.modules['dynamic_network_architectures'] = None\n"
        "from nnssl.networks.build import build_backbone, resolve_configuration, segmentation_of\n"
        f"plans = {_plans()!r}\n"
        "build_backbone(plans, 'fpn', 'decoder'); segmentation_of(resolve_configuration(plans, 'fpn'), 2)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("configuration", "reason"), [("2d", "not three-dim"), ("3d_cascade", "not in the plans")])
def test_build__lists_the_3d_configurations(configuration: str, reason: str) -> None:
    with pytest.raises(UserError, match=rf"{reason}.*3d_fullres, 3d_lowres, residual, fpn"):
        build_backbone(_plans(), configuration, "decoder")
    with pytest.raises(UserError, match=reason):
        build_network(_plans(), configuration, 2)


def test_build_backbone__names_what_is_supported() -> None:
    plans = _plans()
    plans["configurations"]["residual"]["architecture"]["network_class_name"] = "some.where.Transformer"
    with pytest.raises(UserError, match=r"Transformer.*PlainConvUNet.*FPN3dUNet"):
        build_backbone(plans, "residual", "decoder")


@pytest.mark.parametrize("parent", ["missing", "3d_lowres"])
def test_build__refuses_broken_inheritance(parent: str) -> None:
    plans = _plans()
    plans["configurations"]["3d_lowres"]["inherits_from"] = parent
    with pytest.raises(UserError, match="inherits_from"):
        build_network(plans, "3d_lowres", 2)
