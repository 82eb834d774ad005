from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from nnssl.core.errors import UserError
from nnssl.methods.shared.hidden_blocks import visible_blocks
from nnssl.networks.build import build_backbone, name_in_network, pretrained_part
from nnssl.networks.heads import LinearHead
from nnssl.networks.monai_parts import monai_name
from nnssl.networks.pyramid import BlockMask
from nnssl.networks.vit import UNETR, ViTPyramid, resized_positions
from tests.networks.helpers import build_network, count_parameters, state_dict_shapes

STRIDES = [[1, 1, 1], *[[2, 2, 2]] * 4]
TINY: dict[str, Any] = {"feature_size": 4, "hidden_size": 24, "mlp_dim": 32, "num_heads": 3, "num_layers": 4}
SIZE = (32, 32, 48)


def _meta(kind: Any, *arguments: Any, **options: Any) -> Any:
    with torch.device("meta"):
        return kind(*arguments, **options)


def _configuration(**arguments: Any) -> dict[str, Any]:
    return {
        "patch_size": list(SIZE),
        "normalization_schemes": ["CTNormalization"],
        "architecture": {
            "network_class_name": "nnssl.networks.vit.UNETR",
            "arch_kwargs": {"strides": STRIDES, "image_size": SIZE, **TINY, **arguments},
            "_kw_requires_import": [],
        },
    }


def _plans(**arguments: Any) -> dict[str, Any]:
    return {"configurations": {"3d_fullres": _configuration(**arguments)}}


def _mask(*hidden: list[int], grid: tuple[int, int, int] = (2, 2, 3)) -> BlockMask:
    """Hidden blocks by number, equally many of every volume."""
    mask = torch.zeros(len(hidden), 12, dtype=torch.bool)
    for row, numbers in zip(mask, hidden, strict=True):
        row[numbers] = True
    mask = mask.view(-1, *grid)
    return BlockMask(mask, visible_blocks(mask, len(hidden[0]) / 12))


def test_unetr__is_monais_in_names_shapes_and_number_of_parameters() -> None:
    from monai.networks.nets.unetr import UNETR as MonaiUNETR

    network = _meta(UNETR, 1, 14, strides=STRIDES, image_size=(96, 96, 96))
    official = _meta(MonaiUNETR, in_channels=1, out_channels=14, img_size=(96, 96, 96))
    assert {monai_name(k): list(v.shape) for k, v in network.state_dict().items()} == state_dict_shapes(official)
    assert count_parameters(network) == count_parameters(official) > 90_000_000


def test_unetr__computes_what_monais_computes() -> None:
    from monai.networks.nets.unetr import UNETR as MonaiUNETR

    torch.manual_seed(0)
    mine = UNETR(2, 3, strides=STRIDES, image_size=SIZE, feature_size=4, hidden_size=24, mlp_dim=32, num_heads=3).eval()
    official = MonaiUNETR(2, 3, SIZE, feature_size=4, hidden_size=24, mlp_dim=32, num_heads=3).eval()
    official.load_state_dict({monai_name(name): tensor for name, tensor in mine.state_dict().items()})
    x = torch.randn(1, 2, *SIZE)
    with torch.no_grad():
        logits, expected = mine(x), official(x)
    assert logits.shape == (1, 3, *SIZE)
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("levels", ["encoder", "decoder"])
def test_vit_pyramid__maps_have_the_stated_channels_and_strides(levels: Any) -> None:
    torch.manual_seed(0)
    pyramid = ViTPyramid(2, SIZE, **TINY, levels=levels)
    maps = pyramid(torch.randn(1, 2, *SIZE))
    for feature_map, channels, stride in zip(maps, pyramid.channels, pyramid.strides, strict=True):
        assert feature_map.shape == (1, channels, *(n // s for n, s in zip(SIZE, stride, strict=True)))
    weights = [torch.randn_like(m) for m in maps]
    sum((m * w).sum() for m, w in zip(maps, weights, strict=True)).backward()  # type: ignore[union-attr]
    silent = {name for name, p in pyramid.named_parameters() if p.grad is None}
    assert silent == {name for name, _ in pyramid.named_parameters() if name.startswith(pyramid.unused)}
    assert silent == {name for name, p in pyramid.named_parameters() if not p.requires_grad}
    assert any("decoder" in name for name in silent) == (levels == "encoder")
    if levels == "decoder":
        logits = LinearHead(pyramid.channels, pyramid.strides, 3)([m.detach() for m in maps])
        assert logits.shape == (1, 3, *SIZE)


def test_masked_levels__hidden_blocks_are_never_looked_at() -> None:
    torch.manual_seed(0)
    pyramid = ViTPyramid(1, SIZE, **TINY).eval()
    x, mask = torch.randn(2, 1, *SIZE), _mask([0, 3, 5, 11], [1, 2, 3, 4])
    other = x.clone()
    other[0, :, :16, :16, :16] = 99.0  # block 0
    other[0, :, 16:, 16:, 32:] = torch.nan  # block 11
    (before,), (after,) = (pyramid.masked_levels(image, mask) for image in (x, other))
    hidden = mask.hidden[:, None].expand_as(before)
    assert torch.equal(before[~hidden], after[~hidden]) and before[hidden].abs().max() == 0
    (whole,) = pyramid(x)
    assert not torch.allclose(whole[~hidden], before[~hidden]), "attention sees fewer tokens"
    (nothing_hidden,) = pyramid.masked_levels(x, _mask([], []))
    torch.testing.assert_close(nothing_hidden, whole)


def test_vit_pyramid__positions_are_saved_and_serve_other_sizes() -> None:
    torch.manual_seed(0)
    pyramid = ViTPyramid(1, SIZE, **TINY)
    name = "vit.patch_embedding.position_embeddings"
    assert pyramid.state_dict()[name].shape == (1, 12, 24)
    again = ViTPyramid(1, SIZE, **TINY)
    again.load_state_dict(pyramid.state_dict())
    x = torch.randn(1, 1, 48, 64, 16)
    assert torch.equal(again.eval()(x)[0], pyramid.eval()(x)[0]) and pyramid(x)[0].shape == (1, 24, 3, 4, 1)


def test_resized_positions__ramps_stay_ramps_and_the_same_grid_stays_the_same() -> None:
    ramp = torch.arange(4.0).view(1, 4, 1, 1).expand(2, 4, 3, 5)
    positions = ramp.flatten(1).mT[None]
    assert torch.equal(resized_positions(positions, (4, 3, 5), (4, 3, 5)), positions)
    finer = resized_positions(positions, (4, 3, 5), (8, 6, 5))[0].view(8, 6, 5, 2)
    expected = ((torch.arange(8) + 0.5) / 2 - 0.5).clamp(0, 3)
    torch.testing.assert_close(finer, expected.view(8, 1, 1, 1).expand_as(finer))


def test_build__plans_give_the_network_and_what_a_pretraining_fills() -> None:
    network = _meta(build_network, _plans(), "3d_fullres", 5)
    assert isinstance(network, UNETR) and not network.decoder.deep_supervision
    backbone = _meta(build_backbone, _plans(), "3d_fullres", "encoder")
    assert isinstance(backbone, ViTPyramid) and backbone.levels == "encoder"
    filled = pretrained_part(network, _configuration(), "encoder")
    assert filled.keys() == {
        f"vit.{n}" for n in state_dict_shapes(network.backbone.get_submodule("vit")) if "cross_attn" not in n
    }
    assert all(name_in_network(name) in network.state_dict() for name in filled)
    for build in (lambda p: build_backbone(p, "3d_fullres", "encoder"), lambda p: build_network(p, "3d_fullres", 2)):
        with pytest.raises(UserError, match="strides"):
            _meta(build, _plans(strides=[[1, 1, 1], [2, 2, 2]]))


def test_unetr__stock_nnunet_trains_it_with_deep_supervision() -> None:
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    architecture = _configuration()["architecture"]
    network: Any = get_network_from_plans(
        architecture["network_class_name"], architecture["arch_kwargs"], [], 1, 3, deep_supervision=True
    )
    x = torch.randn(1, 1, *SIZE)
    (logits,) = network(x)
    logits.square().mean().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    assert {n.split(".")[4] for n, p in network.named_parameters() if not p.requires_grad} == {"norm_cross_attn"}
    network.decoder.deep_supervision = False
    torch.testing.assert_close(network(x), logits, rtol=0, atol=0)


@pytest.mark.parametrize(("patch", "advice"), [((16, 16, 16), "16,16,32"), ((40, 64, 64), "48,64,64")])
def test_check_patch__refuses_and_names_one_that_fits(patch: tuple[int, ...], advice: str) -> None:
    pyramid = _meta(ViTPyramid, 1, SIZE, **TINY)
    with pytest.raises(UserError, match=f"use .*{advice}"):
        pyramid.check_patch(patch)
    pyramid.check_patch([int(n) for n in advice.split(",")])


@pytest.mark.parametrize("arguments", [{"num_heads": 5}, {"num_layers": 6}, {"image_size": (20, 32, 32)}])
def test_vit_pyramid__refuses_numbers_that_do_not_fit(arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"heads|multiples of 16"):
        _meta(ViTPyramid, 1, **{"image_size": SIZE, **TINY, **arguments})


def test_import__monai_is_not_imported_before_a_network_is_built() -> None:
    code = (
        "import sys, nnssl.networks.build, nnssl.methods.alice.method, nnssl.methods.mae.method; "
        "print('monai' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


@pytest.mark.parametrize("missing", ["monai.networks.nets.vit", "einops"])
def test_vit_pyramid__missing_monai_names_the_line_to_type(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=r"pip install .*monai.* einops"):
        ViTPyramid(1, SIZE, **TINY)
