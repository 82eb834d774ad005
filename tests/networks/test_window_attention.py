from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnssl.networks import tiled_attention, window_attention
from nnssl.networks.nnformer import NNFormer
from nnssl.networks.swin import SwinPyramid
from nnssl.networks.vit import ViTPyramid
from nnssl.networks.window_attention import WindowAttention, biased_attention, fuse_windows
from tests.networks.helpers import state_dict_shapes


def _monais(dim: int, heads: int, window: tuple[int, int, int]) -> nn.Module:
    from monai.networks.nets.swin_unetr import WindowAttention as Monais

    torch.manual_seed(0)
    layer: nn.Module = Monais(dim, heads, window, qkv_bias=True)
    nn.init.normal_(layer.relative_position_bias_table)  # type: ignore[arg-type]
    return layer


def _run(layer: nn.Module, x: Tensor, mask: Tensor | None) -> list[Tensor]:
    """The output, and the gradients of the input and of all parameters."""
    x = x.clone().requires_grad_()
    y = layer(x, mask)
    weight = torch.linspace(-1, 1, y.numel()).view(y.shape)
    gradients = torch.autograd.grad((y * weight).mean(), [x, *layer.parameters()])
    return [y.detach(), *gradients]


@pytest.mark.parametrize("tile", [tiled_attention._TILE, 60, 1], ids=["one tile", "some", "a head each"])
@pytest.mark.parametrize("kind", ["plain", "shifted", "smaller window"])
def test_window_attention__equals_monais(kind: str, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from monai.networks.nets.swin_unetr import compute_mask

    monkeypatch.setattr(tiled_attention, "_TILE", tile)
    theirs = _monais(12, 3, (2, 3, 2))
    mine = WindowAttention(copy.deepcopy(theirs))
    mask = compute_mask([4, 6, 6], (2, 3, 2), (1, 1, 1), "cpu") if kind == "shifted" else None
    x = torch.randn(3 * 12, 8 if kind == "smaller window" else 12, 12)
    for got, expected in zip(_run(mine, x, mask), _run(theirs, x, mask), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(mine(x, mask), theirs(x, mask), rtol=1e-5, atol=1e-6)


def test_window_attention__has_monais_parameters_in_their_order() -> None:
    theirs = _monais(12, 3, (2, 2, 2))
    mine = WindowAttention(theirs)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    assert [name for name, _ in mine.named_parameters()] == [name for name, _ in theirs.named_parameters()]


@pytest.mark.parametrize("own_bias", [True, False])
def test_biased_attention__tiles_equal_torchs(own_bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 3, 2, 5, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3 if own_bias else 1, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    results = []
    for tiled in (True, False):
        monkeypatch.setattr(window_attention, "in_tiles", lambda *_, tiled=tiled: tiled)
        read = biased_attention(query, key, value, bias, None, 0.3)
        results.append([read, *torch.autograd.grad(read.square().sum(), [query, key, value, bias])])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_fuse_windows__every_network_has_the_names_of_monais_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    def build() -> list[nn.Module]:
        with torch.device("meta"):
            return [SwinPyramid(feature_size=12), NNFormer(1, 2, strides=[[1] * 3, *[[2] * 3] * 3])]

    fused = build()
    for name in ("swin", "nnformer"):
        monkeypatch.setattr(f"nnssl.networks.{name}.fuse_windows", lambda module: None)
    for network, plain in zip(fused, build(), strict=True):
        assert state_dict_shapes(network) == state_dict_shapes(plain)
        assert [n for n, _ in network.named_parameters()] == [n for n, _ in plain.named_parameters()]
        found = [m for m in network.modules() if type(m).__name__ == "WindowAttention"]
        assert len(found) >= 8 and all(isinstance(m, WindowAttention) for m in found)


def test_window_attention__bfloat16_is_near() -> None:
    layer = WindowAttention(_monais(12, 3, (2, 2, 2)))
    x = torch.randn(4, 8, 12)
    with torch.autocast("cpu", torch.bfloat16):
        got = _run(layer, x, None)
    for a, b in zip(got, _run(layer, x, None), strict=True):
        assert (a.float() - b).norm() < 0.03 * b.norm() + 1e-6


def test_vit_pyramid__equals_the_plain_attention() -> None:
    torch.manual_seed(0)
    pyramid: Any = ViTPyramid(1, (16, 32, 32), 4, 24, 48, 3, 4)
    x = torch.randn(2, 1, 16, 32, 32)
    results: list[list[Tensor]] = []
    for fused in (True, False):
        for block in pyramid.vit.blocks:
            assert block.attn.use_flash_attention or results
            block.attn.use_flash_attention = fused
        (y,) = pyramid(x)
        parameters = [p for p in pyramid.parameters() if p.requires_grad]
        results.append([y, *torch.autograd.grad(y.square().mean(), parameters)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_fuse_windows__leaves_its_own_layers() -> None:
    from monai.networks.nets.swin_unetr import SwinTransformerBlock

    block: Any = SwinTransformerBlock(12, 3, (2, 2, 2), (0, 0, 0))
    fuse_windows(block)
    first, kind = block.attn, type(block)
    fuse_windows(block)
    assert isinstance(first, WindowAttention) and block.attn is first
    assert type(block) is kind is not SwinTransformerBlock and isinstance(block, SwinTransformerBlock)
