from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nnssl.networks import tiled_attention as tiles
from nnssl.networks.tiled_attention import in_tiles, kept_attention, tiled_attention

_SCALE = 0.3


def _inputs(biases: int) -> list[Tensor]:
    torch.manual_seed(0)
    wide = torch.float64
    query = torch.randn(2, 6, 4, 3, dtype=wide)  # 2 heads, 6 windows of 4 queries and 5 keys
    key, value = torch.randn(2, 2, 6, 5, 3, dtype=wide)
    bias = torch.randn(2, biases, 4, 5, dtype=wide)
    return [x.requires_grad_() for x in (query, key, value, bias)]


def _tiled(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    return tiled_attention(query, key, value, bias, _SCALE)


def _plain(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    added = bias.repeat(1, query.shape[1] // bias.shape[1], 1, 1)
    return (_SCALE * query @ key.mT + added).softmax(-1) @ value


def _gradients(read: Tensor, inputs: list[Tensor], **options: Any) -> tuple[Tensor, ...]:
    weight = torch.linspace(-1, 1, read.numel(), dtype=read.dtype).view(read.shape)
    return torch.autograd.grad((read * weight).sum(), inputs, **options)


@pytest.mark.parametrize("tile", [tiles._TILE, 50, 1], ids=["a head each", "two windows each", "a window each"])
@pytest.mark.parametrize("biases", [1, 3, 6])
def test_tiled_attention__equals_the_formula(biases: int, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "_TILE", tile)
    inputs = _inputs(biases)
    got, expected = _tiled(*inputs), _plain(*inputs)
    torch.testing.assert_close(got, expected)
    for a, b in zip(_gradients(got, inputs), _gradients(expected, inputs), strict=True):
        torch.testing.assert_close(a, b)


def test_tiled_attention__takes_views_of_any_strides() -> None:
    inputs = [x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for x in _inputs(1)]
    got, expected = _tiled(*inputs), _plain(*inputs)
    for a, b in zip(_gradients(got, inputs), _gradients(expected, inputs), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kept", [True, False])
def test_kept_attention__is_not_computed_again(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[Tensor] = []
    plain = tiles._weights

    def counted(*given: Tensor) -> Tensor:
        computed.append(plain(*given))
        return computed[-1]

    monkeypatch.setattr(tiles, "_weights", counted)
    inputs = _inputs(1)
    options: dict[str, Any] = {"context_fn": kept_attention} if kept else {}

    def twice(query: Tensor, *others: Tensor) -> Tensor:
        return _tiled(_tiled(query, *others), *others).sin()

    expected = _gradients(twice(*inputs), inputs)
    read = checkpoint(twice, *inputs, use_reentrant=False, **options)
    for again in (True, False):  # a graph that is kept is computed again from the same results
        computed.clear()
        for a, b in zip(_gradients(read, inputs, retain_graph=again), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
        assert len(computed) == 2 * 2 * (1 if kept else 2)  # two attentions of two heads


def test_in_tiles__is_for_plain_attention_of_a_cpu() -> None:
    x = torch.zeros(1)
    assert in_tiles(x, 0.0) and in_tiles(x.double(), 0.0)
    assert not in_tiles(x, 0.1) and not in_tiles(x.bfloat16(), 0.0) and not in_tiles(x.to("meta"), 0.0)
