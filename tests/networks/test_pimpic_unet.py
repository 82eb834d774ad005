from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

from nnssl.core.errors import UserError
from nnssl.networks.build import build_backbone
from nnssl.networks.contrastive import l2_normalise, projection_head
from nnssl.networks.pimpic_unet import Pimpic3d, PimpicUNet, instance_norm, keeps_layout, weights_like_maps
from tests.networks.helpers import (
    assert_matches,
    build_network,
    count_parameters,
    fill_by_rule,
    input_by_rule,
    load_reference,
    state_dict_shapes,
)

REFERENCE = load_reference("pimpic.json")
PRESET = Path(__file__).parents[2] / "plans" / "nnsslPlans_pimpic.json"
NAME = f"{PimpicUNet.__module__}.{PimpicUNet.__qualname__}"


def architecture(num_scales: int) -> dict[str, Any]:
    return {"base_channels": 4, "num_scales": num_scales, "strides": [[1, 1, 1], *[[2, 2, 2]] * num_scales]}


@pytest.mark.parametrize("levels", ["encoder", "decoder"])
def test_weights_like_maps__gradients_have_the_strides_of_their_weights(levels: Literal["encoder", "decoder"]) -> None:
    network, image = Pimpic3d(1, 4, 3, levels), torch.randn(2, 1, 16, 16, 24)
    before = network(image)
    weights_like_maps(network)
    after = network(image)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other)
    torch.stack([level.square().mean() for level in after]).sum().backward()
    gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert len(gradients) >= 18
    for name, gradient in gradients.items():  # as DistributedDataParallel wants it
        assert gradient.stride() == network.get_parameter(name).stride(), name


def test_pimpic_unet__gives_the_official_logits() -> None:
    vector = REFERENCE["Decoder3D(K=4)"]
    assert_matches(fill_by_rule(PimpicUNet(1, 3, **architecture(5)))(input_by_rule(vector["input"])), vector["out"])


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
    network: Any = get_network_from_plans(NAME, architecture(2), [], 1, 3, deep_supervision=True)
    assert isinstance(network, PimpicUNet)
    scales = (
        1 / np.cumprod(np.vstack(architecture(2)["strides"]), axis=0)[:-1]
    )  # nnUNetTrainer._get_deep_supervision_scales
    x = torch.randn(2, 1, 8, 16, 8)
    deep = network(x)
    expected = [tuple(np.round(np.array([8, 16, 8]) * scale).astype(int)) for scale in scales]
    assert [tuple(logits.shape[2:]) for logits in deep] == expected
    sum((logits**2).sum() for logits in deep).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    network.decoder.deep_supervision = False  # as nnUNetTrainer.set_deep_supervision_enabled does
    torch.testing.assert_close(network(x), deep[0], rtol=0, atol=0)


def test_pimpic_unet__only_segmentation_layers_depend_on_the_classes() -> None:
    two, five = (PimpicUNet(1, classes, **architecture(2)).state_dict() for classes in (2, 5))
    different = {name for name in two if two[name].shape != five[name].shape}
    assert different and all(".seg_layers." in name for name in different)


def test_pimpic_unet__refuses_other_strides() -> None:
    with pytest.raises(UserError, match="strides"):
        PimpicUNet(1, 2, **{**architecture(2), "num_scales": 3})


def test_pimpic3d__encoder_gives_the_official_maps() -> None:
    vector = REFERENCE["Encoder3D(K=4)"]
    pyramid = fill_by_rule(Pimpic3d(1, 4))(input_by_rule(vector["input"]))
    assert len(pyramid) == 5
    for level, expected in zip(pyramid, vector["levels"], strict=True):
        assert_matches(level, expected)
    assert_matches(torch.nn.functional.max_pool3d(pyramid[-1], 2), vector["last"])


def test_pimpic3d__has_the_published_names_and_sizes() -> None:
    backbone = Pimpic3d()
    assert state_dict_shapes(backbone.encoder) == REFERENCE["state_dict_shapes"]["Encoder3D(K=32)"]
    assert count_parameters(backbone.encoder) == REFERENCE["param_counts"]["Encoder3D"]["params"] == 23_559_936
    used = backbone.used_tensors()
    assert sum(t.numel() for t in used.values()) == 23_559_936
    assert {name for name, p in backbone.named_parameters() if p.requires_grad} == set(used)


def test_projection_head__gives_the_official_vectors() -> None:
    vector = REFERENCE["projection_head(6,4,3)"]
    output = l2_normalise(fill_by_rule(projection_head(6, 4, 3))(input_by_rule(vector["input"])))
    torch.testing.assert_close(output, torch.tensor(vector["out"], dtype=torch.float64), rtol=0, atol=1e-7)


@pytest.mark.parametrize("levels", ["encoder", "decoder"])
def test_pimpic3d__maps_fit_channels_and_strides(levels: Literal["encoder", "decoder"]) -> None:
    backbone = Pimpic3d(2, 4, 3, levels)
    pyramid = backbone(torch.randn(2, 2, 8, 16, 24))
    assert backbone.divisor == ((4, 4, 4) if levels == "encoder" else (8, 8, 8))
    assert len(pyramid) == (3 if levels == "encoder" else 4)
    for level, channels, stride in zip(pyramid, backbone.channels, backbone.strides, strict=True):
        assert level.shape == (2, channels, *(n // s for n, s in zip((8, 16, 24), stride, strict=True)))
    sum(level.square().mean() for level in pyramid).backward()
    for name, parameter in backbone.named_parameters():
        assert (parameter.grad is None) == name.startswith(("bottleneck", "decoder") if levels == "encoder" else "none")


def test_pimpic3d__float32_in_its_own_layout_agrees_with_float64() -> None:
    torch.manual_seed(0)
    backbone, x = Pimpic3d(1, 8, 3), torch.rand(2, 1, 8, 8, 16)
    upstream = [torch.randn_like(level) for level in backbone(x)]
    results = []
    for dtype in (torch.float32, torch.float64):
        pyramid = backbone.to(dtype)(x.to(dtype))
        loss = sum((level * up.to(dtype)).mean() for level, up in zip(pyramid, upstream, strict=True))
        weights = [p for n, p in backbone.named_parameters() if p.requires_grad and n.endswith("weight")]
        results.append([level.double() for level in pyramid] + [g.double() for g in torch.autograd.grad(loss, weights)])
    for narrow, wide in zip(*results, strict=True):
        torch.testing.assert_close(narrow, wide, rtol=1e-3, atol=1e-4 * wide.abs().max().item())


@pytest.mark.parametrize(
    ("levels", "patch", "advice"),
    [
        ("encoder", (64, 64, 72), "64,64,80"),
        ("encoder", (16, 16, 16), "16,16,32"),
        ("decoder", (64, 48, 64), "64,64,64"),
        ("decoder", (32, 32, 32), "32,32,64"),
    ],
)
def test_check_patch__names_a_size_that_works(
    levels: Literal["encoder", "decoder"], patch: tuple[int, int, int], advice: str
) -> None:
    with torch.device("meta"):
        backbone = Pimpic3d(levels=levels)
    with pytest.raises(UserError, match=f"use .*{advice}"):
        backbone.check_patch(patch)
    backbone.check_patch((64, 64, 64), 1)
    backbone.check_patch((32, 32, 32) if levels == "encoder" else (32, 64, 32))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_instance_norm__value_gradient_and_layout(
    memory_format: torch.memory_format, dtype: torch.dtype, tolerance: float
) -> None:
    torch.manual_seed(0)
    x = (2 + 3 * torch.randn(3, 4, 5, 6, 7, dtype=dtype)).to(memory_format=memory_format).requires_grad_()
    upstream = torch.randn_like(x).contiguous()
    normalised = instance_norm(x)
    assert normalised.is_contiguous(memory_format=memory_format)
    (gradient,) = torch.autograd.grad(normalised, x, upstream)
    wide = x.detach().double().requires_grad_()
    expected = F.instance_norm(wide)
    (expected_gradient,) = torch.autograd.grad(expected, wide, upstream.double())
    torch.testing.assert_close(normalised.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=tolerance, atol=tolerance)


def test_instance_norm__an_in_place_activation_may_follow() -> None:
    x = torch.randn(2, 3, 4, 4, 4).to(memory_format=torch.channels_last_3d).requires_grad_()
    (one,) = torch.autograd.grad(F.relu_(instance_norm(x)).square().sum(), x)
    (other,) = torch.autograd.grad(F.relu(F.instance_norm(x)).square().sum(), x)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_instance_norm__half_precision_and_one_voxel_go_torchs_way() -> None:
    half = torch.randn(2, 3, 4, 4, 4).bfloat16().to(memory_format=torch.channels_last_3d)
    assert keeps_layout(half)
    torch.testing.assert_close(instance_norm(half), F.instance_norm(half), rtol=0, atol=0)
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        instance_norm(torch.randn(1, 3, 1, 1, 1))
