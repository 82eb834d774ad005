from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnssl.core.errors import UserError
from nnssl.networks.build import build_backbone, build_network
from nnssl.networks.pimpic_unet import Pimpic3d, PimpicUNet
from tests.networks.helpers import (
    assert_matches,
    count_parameters,
    fill_by_rule,
    input_by_rule,
    load_reference,
    state_dict_shapes,
)

REFERENCE = load_reference("pimpic.json")
PRESET = Path(__file__).parents[2] / "plans" / "nnsslPlans_pimpic.json"
NAME = f"{PimpicUNet.__module__}.{PimpicUNet.__qualname__}"


def strides(num_scales: int) -> list[list[int]]:
    return [[1, 1, 1], *[[2, 2, 2]] * num_scales]


def small(deep_supervision: bool | None) -> Any:
    arguments = {"base_channels": 4, "num_scales": 2, "strides": strides(2)}
    return get_network_from_plans(NAME, arguments, [], 1, 3, deep_supervision=deep_supervision)


def test_pimpic_unet__gives_the_official_logits() -> None:
    vector = REFERENCE["Decoder3D(K=4)"]
    assert_matches(fill_by_rule(PimpicUNet(1, 3, 4, 5, strides(5)))(input_by_rule(vector["input"])), vector["out"])


def test_pimpic_unet__preset_has_the_published_size() -> None:
    plans = json.loads(PRESET.read_text())
    with torch.device("meta"):
        network: Any = build_network(plans, "3d_fullres", 3)
        backbone = build_backbone(plans, "3d_fullres", "encoder")
    decoder = [network.backbone.bottleneck, network.backbone.decoder, network.decoder.seg_layers[-1]]
    assert sum(map(count_parameters, decoder)) == REFERENCE["param_counts"]["Decoder3D"]["params"] == 21_293_603
    assert isinstance(backbone, Pimpic3d) and backbone.levels == "encoder"
    assert state_dict_shapes(backbone) == state_dict_shapes(network.backbone)
    levels = REFERENCE["param_counts"]["Encoder3D"]["levels"]
    assert backbone.channels == tuple(shape[1] for shape in levels)
    patch = plans["configurations"]["3d_fullres"]["patch_size"]
    assert [[n // s for n, s in zip(patch, stride, strict=True)] for stride in backbone.strides] == [
        shape[2:] for shape in levels
    ]
    for whole in (backbone, network.backbone):
        whole.check_patch(patch, 1)


def test_pimpic_unet__preset_states_the_papers_window() -> None:
    """What CTNormalization makes of it: clip to [-200, 400] HU, then to [0, 1]."""
    ct = json.loads(PRESET.read_text())["foreground_intensity_properties_per_channel"]["0"]
    clipped = np.clip([-1000.0, -200.0, 100.0, 400.0, 3000.0], ct["percentile_00_5"], ct["percentile_99_5"])
    np.testing.assert_allclose((clipped - ct["mean"]) / ct["std"], [0, 0, 0.5, 1, 1])


def test_pimpic_unet__gives_one_output_per_target_of_nnunet() -> None:
    network = small(True)
    assert isinstance(network, PimpicUNet)
    scales = 1 / np.cumprod(np.vstack(strides(2)), axis=0)[:-1]  # nnUNetTrainer._get_deep_supervision_scales
    x = torch.randn(2, 1, 8, 16, 8)
    deep = network(x)
    expected = [tuple(np.round(np.array([8, 16, 8]) * scale).astype(int)) for scale in scales]
    assert [tuple(logits.shape[2:]) for logits in deep] == expected
    sum((logits**2).sum() for logits in deep).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    network.decoder.deep_supervision = False  # as nnUNetTrainer.set_deep_supervision_enabled does
    torch.testing.assert_close(network(x), deep[0], rtol=0, atol=0)


def test_pimpic_unet__only_segmentation_layers_depend_on_the_classes() -> None:
    two, five = (PimpicUNet(1, classes, 4, 2, strides(2)).state_dict() for classes in (2, 5))
    different = {name for name in two if two[name].shape != five[name].shape}
    assert different and all(".seg_layers." in name for name in different)


def test_pimpic_unet__refuses_other_strides() -> None:
    with pytest.raises(UserError, match="strides"):
        PimpicUNet(1, 2, 4, 2, strides(1))
