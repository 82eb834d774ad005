from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnssl.networks.window_attention import fuse_windows
from nnssl.networks.window_grid import Span, axis_spans


def _stage(window: tuple[int, int, int]) -> Any:
    from monai.networks.nets.swin_unetr import BasicLayer, PatchMerging

    torch.manual_seed(0)
    stage = BasicLayer(6, 2, 3, window, [0.0, 0.0], qkv_bias=True, downsample=PatchMerging)
    for parameter in stage.parameters():
        nn.init.normal_(parameter, std=0.3)
    return stage.double()


def _run(stage: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = stage(x)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)
    return [y, *torch.autograd.grad((y * weight).sum(), [x, *stage.parameters()])]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("size", "window"),
    [((9, 12, 5), (4, 4, 4)), ((3, 6, 10), (3, 3, 3)), ((4, 8, 2), (2, 5, 3)), ((5, 5, 5), (7, 7, 7))],
    ids=["filled up", "whole windows", "odd windows", "one window"],
)
def test_stage__equals_monais(size: tuple[int, ...], window: tuple[int, int, int], recompute: bool) -> None:
    theirs = _stage(window)
    ours = copy.deepcopy(theirs)
    fuse_windows(ours)
    for block in ours.blocks:
        block.use_checkpoint = recompute
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    for got, expected in zip(_run(copy.deepcopy(ours), x), _run(theirs, x), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_stage__under_autocast_is_monais() -> None:
    theirs = _stage((3, 3, 3)).float()
    ours = copy.deepcopy(theirs)
    fuse_windows(ours)
    x = torch.randn(1, 6, 4, 6, 5)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        got, expected = ours(x).float(), theirs(x).float()
    assert (got - expected).norm() < 0.03 * expected.norm()


def test_axis_spans__whole_windows_are_one_span() -> None:
    assert axis_spans(12, 4, 0) == [Span(3, 4, 4, 0)]
    assert axis_spans(12, 4, 2) == [Span(1, 2, 2, 2), Span(2, 4, 4, 0), Span(1, 2, 2, 0)]


def test_axis_spans__cells_beyond_the_map_ask_nothing() -> None:
    assert axis_spans(32, 7, 0) == [Span(4, 7, 7, 0), Span(1, 7, 4, 0)]
    assert axis_spans(32, 7, 3) == [Span(1, 3, 3, 4), Span(4, 7, 7, 0), Span(1, 4, 1, 0)]
    assert axis_spans(8, 7, 3) == [Span(1, 3, 3, 4), Span(1, 7, 5, 0), Span(1, 4, 0, 0)]


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize(("side", "shift"), [(3, 0), (3, 1), (4, 2), (1, 0)])
def test_axis_spans__cover_the_axis(size: int, side: int, shift: int) -> None:
    spans = axis_spans(size, side, shift)
    assert sum(span.windows * span.keys for span in spans) == -(-size // side) * side
    assert sum(span.windows * span.queries for span in spans) == size
