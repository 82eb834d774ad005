"""Convolutional encoders on the visible cells of a volume alone (Tian et al., Designing BERT for Convolutional
Networks: Sparse and Hierarchical Masked Modeling, ICLR 2023).

An encoder that reads zeros in three quarters of a volume meets other statistics in its norms than on whole images.
Here hidden cells become 0 after every layer and norms take their statistics from visible cells, as in sparse
convolutional networks, with the network's own dense layers and weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import ceil, log2
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.pooling import _AvgPoolNd, _MaxPoolNd

from nnssl.core.distributed import all_reduce_sum, world_size
from nnssl.networks.pyramid import BlockMask, FeaturePyramid, spread

_SPACE = (2, 3, 4)
_MASKED = (_ConvNd, _MaxPoolNd, _AvgPoolNd)  # layers that write into hidden cells


def sparse_levels(network: FeaturePyramid, volumes: Tensor, mask: BlockMask) -> list[Tensor]:
    """The levels of a `convolutional` network that works on visible cells alone.

    A cell that covers several blocks is visible if one of them is.

    Args:
        network: Its parameters, buffers and layers stay as they are.
        volumes: (B, C, Z, Y, X); the values of hidden voxels are never read.
        mask: Which blocks are hidden.

    Returns:
        The levels, finest first, with 0 in hidden cells. Without hidden blocks they are those of `network(volumes)`.
    """
    cells = HiddenCells(mask.hidden)
    with visible_only(network, cells):
        levels: list[Tensor] = network(cells.cleared(volumes))
    return [cells.cleared(level) for level in levels]


class HiddenCells:
    """Which cells of maps of any size are hidden.

    Args:
        hidden: (B, *grid) bool, the hidden blocks; they divide the volume evenly.
    """

    def __init__(self, hidden: Tensor) -> None:
        self._blocks = hidden
        self._of_size: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, size: Sequence[int]) -> Tensor:
        """Mask (B, 1, *size) bool of a map of this size."""
        key = tuple(size)
        if key not in self._of_size:
            self._of_size[key] = self._resized(key)
        return self._of_size[key]

    def _resized(self, size: tuple[int, ...]) -> Tensor:
        hidden, grid = self._blocks, self._blocks.shape[1:]
        together = [1 if cells >= blocks else _blocks_of_a_cell(blocks, cells)
                    for blocks, cells in zip(grid, size, strict=True)]  # fmt: skip
        if max(together) > 1:
            visible = F.max_pool3d((~hidden).float()[:, None], together, ceil_mode=True)
            hidden = visible[:, 0] == 0
        return spread(hidden, size)

    def cleared(self, x: Tensor) -> Tensor:
        """A map (B, C, Z, Y, X) with 0 in hidden cells."""
        return x.masked_fill(self(x.shape[2:]), 0)


def _blocks_of_a_cell(blocks: int, cells: int) -> int:
    """Blocks along an axis that a cell covers; the last cell of a network that rounds up may cover fewer."""
    return blocks // cells if blocks % cells == 0 else 2 ** ceil(log2(blocks / cells))


@contextmanager
def visible_only(network: nn.Module, cells: HiddenCells) -> Iterator[None]:
    """Let convolutions, poolings, batch and instance norms inside a network work on visible cells alone."""
    changed: list[nn.Module] = []
    try:
        for layer in network.modules():
            if isinstance(layer, (_InstanceNorm, _BatchNorm)):
                forward = partial(visible_norm, layer, cells)
            elif isinstance(layer, _MASKED):
                forward = partial(_then_cleared, layer, cells)
            else:
                continue
            layer.__dict__["forward"] = forward  # of this instance alone, before that of its class
            changed.append(layer)
        yield
    finally:
        for layer in changed:
            del layer.__dict__["forward"]


def _then_cleared(layer: nn.Module, cells: HiddenCells, x: Tensor) -> Tensor:
    made: Tensor = type(layer).forward(layer, x)
    return made.masked_fill_(cells(made.shape[2:]), 0)  # no layer of `_MASKED` needs its result for its gradient


def visible_norm(layer: _InstanceNorm | _BatchNorm, cells: HiddenCells, x: Tensor) -> Tensor:
    """Batch or instance norm with the statistics of visible cells, in float32 or wider.

    In training a batch norm counts the cells of all processes, as every batch norm of a pretraining does.

    Args:
        layer: The norm, with or without weights and running statistics.
        cells: The hidden cells.
        x: (B, C, Z, Y, X); hidden cells are not read.

    Returns:
        Its shape and type, with 0 in hidden cells.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    with torch.autocast(x.device.type, enabled=False):
        hidden = cells(x.shape[2:])
        if isinstance(layer, _InstanceNorm) and not layer.track_running_stats:
            normed: Tensor = _VisibleInstanceNorm.apply(wide, layer.weight, layer.bias, hidden, layer.eps)
            return normed.to(x.dtype)
        mean, variance = _statistics(layer, wide, hidden)
        scale = (variance + layer.eps).rsqrt()
        if layer.weight is not None:
            scale = scale * layer.weight.view(1, -1, 1, 1, 1)
        normalised = (wide - mean) * scale
        if layer.bias is not None:
            normalised = normalised + layer.bias.view(1, -1, 1, 1, 1)
        return normalised.masked_fill(hidden, 0).to(x.dtype)


class _VisibleInstanceNorm(torch.autograd.Function):
    """Instance norm of visible cells; the formula of its gradient saves half of the passes over maps, and memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, hidden: Tensor, eps: float) -> Tensor:
        """(B, C, Z, Y, X) with 0 in hidden cells."""
        count = (~hidden).sum(_SPACE, keepdim=True).clamp_(min=1).to(x.dtype)
        unit = x.masked_fill(hidden, 0)
        unit.sub_(unit.sum(_SPACE, keepdim=True) / count).masked_fill_(hidden, 0)
        variance = torch.linalg.vector_norm(unit, dim=_SPACE, keepdim=True).square() / count
        rate = (variance + eps).rsqrt()
        unit.mul_(rate)
        ctx.save_for_backward(unit, rate, weight, hidden, count)
        if weight is None:
            return unit.clone()
        scaled = unit * weight.view(1, -1, 1, 1, 1)
        return scaled if bias is None else scaled.add_(bias.view(1, -1, 1, 1, 1)).masked_fill_(hidden, 0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Those of the map, weight and bias."""
        unit, rate, weight, hidden, count = ctx.saved_tensors
        gradient = gradient.masked_fill(hidden, 0)
        along, along_unit = gradient.sum(_SPACE, keepdim=True), (gradient * unit).sum(_SPACE, keepdim=True)
        if weight is None:
            of_weight = of_bias = None
        else:
            of_weight, of_bias = along_unit.sum(0).flatten(), along.sum(0).flatten()
            rate = rate * weight.view(1, -1, 1, 1, 1)
        of_x = gradient.sub_(along / count).addcmul_(unit, along_unit / count, value=-1).mul_(rate)
        return of_x.masked_fill_(hidden, 0), of_weight, of_bias, None, None


def _statistics(layer: _InstanceNorm | _BatchNorm, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (B or 1, C, 1, 1, 1) that a norm takes; a training batch norm follows them."""
    whole = isinstance(layer, _BatchNorm)
    if not layer.training and layer.track_running_stats:
        assert layer.running_mean is not None and layer.running_var is not None
        return layer.running_mean.view(1, -1, 1, 1, 1), layer.running_var.view(1, -1, 1, 1, 1)
    axes = [0, 2, 3, 4] if whole else [2, 3, 4]
    shared = whole and layer.training and world_size() > 1
    count = (~hidden).to(x.dtype).sum(axes, keepdim=True)
    total = x.masked_fill(hidden, 0).sum(axes, keepdim=True)
    if shared:
        count, total = all_reduce_sum(count), all_reduce_sum(total)
    mean = total / count
    squares = (x - mean).masked_fill(hidden, 0).square().sum(axes, keepdim=True)
    variance = (all_reduce_sum(squares) if shared else squares) / count
    if layer.training and layer.track_running_stats:
        _follow(layer, mean, variance * (count / (count - 1)))
    return mean, variance


@torch.no_grad()
def _follow(layer: _InstanceNorm | _BatchNorm, mean: Tensor, unbiased: Tensor) -> None:
    """Move the running statistics towards (B or 1, C, 1, 1, 1), as torch's layers do."""
    assert layer.running_mean is not None and layer.running_var is not None and layer.num_batches_tracked is not None
    layer.num_batches_tracked.add_(1)
    # without a momentum: the plain average over all batches
    weight = 1.0 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
    layer.running_mean.lerp_(mean.flatten(1).mean(0).to(layer.running_mean.dtype), weight)
    layer.running_var.lerp_(unbiased.flatten(1).mean(0).to(layer.running_var.dtype), weight)
