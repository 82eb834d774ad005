from __future__ import annotations

from typing import Literal

import pytest
import torch

from nnssl.core.errors import UserError
from nnssl.networks.contrastive import l2_normalise, projection_head
from nnssl.networks.pimpic_unet import Pimpic3d
from tests.networks.helpers import (
    assert_matches,
    count_parameters,
    fill_by_rule,
    input_by_rule,
    load_reference,
    state_dict_shapes,
)

REFERENCE = load_reference("pimpic.json")


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
        ("encoder", (64, 64, 72), "use 64,64,80 "),
        ("encoder", (16, 16, 16), "use 16,16,32 "),
        ("decoder", (64, 48, 64), "use 64,64,64 "),
        ("decoder", (32, 32, 32), "use 32,32,64 "),
    ],
)
def test_check_patch__names_a_size_that_works(
    levels: Literal["encoder", "decoder"], patch: tuple[int, int, int], advice: str
) -> None:
    with torch.device("meta"):
        backbone = Pimpic3d(levels=levels)
    with pytest.raises(UserError, match=advice):
        backbone.check_patch(patch)
    backbone.check_patch((64, 64, 64), 1)
    backbone.check_patch((32, 32, 32) if levels == "encoder" else (32, 64, 32))
