from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from nnssl.core.errors import UserError
from nnssl.methods.mae.method import MaskedAutoencoder
from nnssl.methods.shared.hidden_blocks import visible_blocks
from nnssl.methods.shared.masked_method import MaskedConfig
from nnssl.networks.build import build_backbone, name_in_network, pretrained_part
from nnssl.networks.primus import POSITIONS, Primus, PrimusPyramid
from nnssl.networks.pyramid import BlockMask
from nnssl.networks.vit import resized_positions
from tests.networks.helpers import build_network, count_parameters, state_dict_shapes

STRIDES = [[1, 1, 1], *[[2, 2, 2]] * 3]
SIZE = (16, 16, 32)
TINY: dict[str, Any] = {"strides": STRIDES, "embed_dim": 24, "eva_depth": 2, "eva_numheads": 2, "input_shape": SIZE}


def _meta(kind: Any, *arguments: Any, **options: Any) -> Any:
    with torch.device("meta"):
        return kind(*arguments, **options)


def _configuration(**arguments: Any) -> dict[str, Any]:
    return {
        "patch_size": list(SIZE),
        "normalization_schemes": ["CTNormalization"],
        "architecture": {
            "network_class_name": "nnssl.networks.primus.Primus",
            "arch_kwargs": TINY | arguments,
            "_kw_requires_import": [],
        },
    }


def _plans(**arguments: Any) -> dict[str, Any]:
    return {"configurations": {"3d_fullres": _configuration(**arguments)}}


def _library(size: tuple[int, ...], **options: Any) -> Any:
    from dynamic_network_architectures.architectures.primus import Primus as Library

    return Library(2, 24, (8, 8, 8), 3, 2, 2, size, init_values=0.1, scale_attn_inner=True, **options)


def _mask(*hidden: list[int], grid: tuple[int, int, int] = (2, 2, 4)) -> BlockMask:
    mask = torch.zeros(len(hidden), 16, dtype=torch.bool)
    for row, numbers in zip(mask, hidden, strict=True):
        row[numbers] = True
    mask = mask.view(-1, *grid)
    return BlockMask(mask, visible_blocks(mask, len(hidden[0]) / 16))


def test_primus__m_is_the_librarys_in_names_shapes_and_number_of_parameters() -> None:
    from dynamic_network_architectures.architectures.primus import PrimusM

    sizes = {"embed_dim": 864, "eva_depth": 16, "eva_numheads": 12, "input_shape": (64, 64, 64)}
    network = _meta(Primus, 1, 2, strides=STRIDES, **sizes)
    official = _meta(PrimusM, 1, 2, (8, 8, 8), (64, 64, 64))
    shapes = state_dict_shapes(network)
    assert shapes == state_dict_shapes(official) and len(shapes) == 384
    assert count_parameters(network) == 145_551_770
    assert shapes["eva.pos_embed"] == [1, 512, 864]


@pytest.mark.parametrize("size", [SIZE, (24, 16, 16)])
def test_primus__computes_what_the_librarys_computes_that_was_built_for_that_size(size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    mine, official = Primus(2, 3, **TINY).eval(), _library(size).eval()
    state, grid = mine.state_dict(), [n // 8 for n in size]
    positions = resized_positions(state["eva.pos_embed"], (2, 2, 4), grid)
    official.load_state_dict(state | {"eva.pos_embed": positions})
    x = torch.randn(1, 2, *size)
    with torch.no_grad():
        torch.testing.assert_close(mine(x), official(x))
    tokens = official.eva(official.down_projection(x).flatten(2).mT)[0]
    torch.testing.assert_close(PrimusPyramid(mine, "encoder")(x)[0].flatten(2).mT, tokens)


@pytest.mark.parametrize("batch", [1, 2, 3])  # of two heads: the library's own dropping mixes up samples and heads
def test_masked_levels__visible_tokens_keep_their_places_and_see_no_others(batch: int) -> None:
    torch.manual_seed(0)
    pyramid = PrimusPyramid(Primus(1, 2, **TINY), "encoder").eval()
    hidden = [[0, 3, 5, 15], [1, 2, 3, 4], [6, 7, 8, 9]][:batch]
    x, mask = torch.randn(batch, 1, *SIZE), _mask(*hidden)
    other = x.clone()
    other[0, :, :8, :8, :8], other[0, :, 8:, 8:, 24:] = 99.0, torch.nan  # tokens 0 and 15
    (before,), (after,) = (pyramid.masked_levels(image, mask) for image in (x, other))
    gone = mask.hidden[:, None].expand_as(before)
    assert torch.equal(before[~gone], after[~gone]) and before[gone].abs().max() == 0
    network, rotary = pyramid.network, pyramid.network.eva.rope.get_embed()
    for i in range(batch):  # one sample by hand
        kept = [n for n in range(16) if n not in hidden[i]]
        tokens = (network.down_projection(x[i : i + 1]).flatten(2).mT + network.eva.pos_embed)[:, kept]
        for block in network.eva.blocks:
            tokens = block(tokens, rotary[kept])
        torch.testing.assert_close(before[i].flatten(1).T[kept], network.eva.norm(tokens)[0])
    torch.testing.assert_close(pyramid.masked_levels(x, _mask(*[[]] * batch)), pyramid(x))


def test_pyramid__trains_all_but_the_up_projection() -> None:
    torch.manual_seed(0)
    pyramid = build_backbone(_plans(), "3d_fullres", "decoder")
    assert isinstance(pyramid, PrimusPyramid) and pyramid.encodes_blocks
    (level,) = pyramid(torch.randn(1, 1, *SIZE))
    assert level.shape == (1, *pyramid.channels, 2, 2, 4) and pyramid.strides == ((8, 8, 8),)
    (level * torch.randn_like(level)).sum().backward()
    silent = {name for name, p in pyramid.named_parameters() if p.grad is None}
    assert silent == {name for name, p in pyramid.named_parameters() if not p.requires_grad}
    assert silent == {name for name, _ in pyramid.named_parameters() if ".up_projection." in name}
    network: Any = _meta(build_network, _plans(), "3d_fullres", 5)
    filled = pretrained_part(network, _configuration(), "encoder")
    assert POSITIONS in filled and filled.keys() == pyramid.used_tensors().keys()
    expected = {name for name in network.state_dict() if name.startswith(("eva.", "down_projection."))}
    assert {name_in_network(name) for name in filled} == expected


def test_primus__stock_nnunet_trains_it_with_deep_supervision() -> None:
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    architecture = _configuration()["architecture"]
    network: Any = get_network_from_plans(
        architecture["network_class_name"], architecture["arch_kwargs"], [], 1, 3, deep_supervision=True
    )
    x = torch.randn(2, 1, *SIZE)
    (logits,) = network(x)
    logits.square().mean().backward()
    assert logits.shape == (2, 3, *SIZE) and all(p.grad is not None for p in network.parameters())
    network.decoder.deep_supervision = False
    torch.testing.assert_close(network(x), logits, rtol=0, atol=0)


def test_mae__learns_on_the_visible_tokens_and_decodes_the_others() -> None:
    torch.manual_seed(0)
    small: dict[str, Any] = {"decoder_width": 12, "decoder_depth": 1, "decoder_heads": 2}
    config = MaskedConfig(batch_size=2, patch_size=(16, 24, 16), **small)
    backbone: Any = build_backbone(_plans(drop_path_rate=0.2), "3d_fullres", "encoder")
    MaskedAutoencoder.check(config, backbone)
    method = MaskedAutoencoder(backbone, config)
    assert method.block == (8, 8, 8) and method.grid == (2, 3, 2)
    seen: list[int] = []
    backbone.network.eva.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    corner = torch.zeros(2, 1, 3, dtype=torch.long)
    batch = {"crops": torch.randn(2, 1, 1, 16, 24, 16), "mask_seeds": torch.tensor([[1], [2]]), "starts": corner,
             "sizes": torch.full((2, 1, 3), 30)}  # fmt: skip
    output = method(method.augment(batch))
    output.loss.backward()
    assert seen == [3] and output.embeddings.shape == (2, 24)
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eva_numheads": 3}, "embed_dim` to 18"),
        ({"eva_numheads": 5}, "embed_dim` to 30"),
        ({"input_shape": (20, 16, 16)}, "input_shape"),
        ({"patch_embed_size": (6, 8, 8)}, "powers of 2"),
        ({"patch_embed_size": (4, 8, 8)}, "strides"),
    ],
)
def test_primus__refuses_numbers_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _meta(Primus, 1, 2, **TINY | arguments)


def test_primus__refuses_parts_of_tokens_and_names_a_patch_that_fits() -> None:
    pyramid = _meta(Primus.pyramid, 1, "encoder", **TINY)
    with pytest.raises(UserError, match=r"use 16,16,16 or 16,16,24"):
        pyramid.check_patch((16, 16, 20))
    pyramid.check_patch((8, 8, 8))
    with pytest.raises(UserError, match="8,8,8 voxels, and the image has 16,16,20"):
        pyramid(torch.empty(1, 1, 16, 16, 20, device="meta"))


def test_primus__a_missing_library_names_the_line_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dynamic_network_architectures.architectures.primus", None)
    with pytest.raises(UserError, match=r"pip install .*dynamic_network_architectures.* timm einops"):
        Primus(1, 2, **TINY)
