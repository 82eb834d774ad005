"""A step's crops through the network in parts, with the gradients of all at once."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from nnssl.core.errors import UserError

Result = TypeVar("Result", bound=Tensor | tuple[Tensor, ...])


def in_parts(
    function: Callable[..., Result], parts: int, *rows: Tensor, points: tuple[Tensor, Tensor] | None = None
) -> Result:  # fmt: skip
    """Apply a function that treats every crop by itself to parts of the crops, one after another.

    Only the results are kept, and the loss sees them all. The backward pass applies the function to each part again,
    with the same random numbers, so that the activations of a single part are in memory (gradient caching: Gao et al.,
    RepL4NLP 2021). Under DistributedDataParallel this is a single pass: gradients are exchanged once.

    Args:
        function: of the same arguments as here; its results have one row per crop, or per point.
        parts: their number; 1 calls the function once.
        rows: tensors with one row per crop, M rows each.
        points: (N, 4) [crop, z, y, x], ascending by crop, which the function takes last, counting the crops of its
            part from 0; and (M,) the numbers of points of the crops, on the CPU.

    Returns:
        What the function returns for everything at once.
    """
    if parts == 1:
        return function(*rows, *(() if points is None else points[:1]))
    bounds = [len(rows[0]) * part // parts for part in range(parts + 1)]
    results: list[Any] = []
    for arguments in _cut(bounds, rows, points):
        if torch.is_grad_enabled():
            results.append(checkpoint(function, *arguments, use_reentrant=False))
        else:
            results.append(function(*arguments))
    if isinstance(results[0], Tensor):
        return cast(Result, torch.cat(results))
    return cast(Result, tuple(torch.cat(column) for column in zip(*results, strict=True)))


def check_parts(parts: int, crops: int, backbone: nn.Module) -> None:
    """Refuse parts that would be empty, or change the gradients.

    Args:
        parts: `accumulate` of the run.
        crops: Number that a process passes through the network at once.
        backbone: The network.

    Raises:
        UserError: There are fewer crops than parts, or the network normalises over all crops of a step.
    """
    if parts == 1:
        return
    if parts > crops:
        raise UserError(f"accumulate={parts} is more than the {crops} crops that a process passes through the network "
                        f"at once; set accumulate={crops} or less")  # fmt: skip
    if any(isinstance(layer, _BatchNorm) for layer in backbone.modules()):
        raise UserError(f"accumulate={parts} would change the gradients of {type(backbone).__name__}, which normalises "
                        f"over all crops of a step; set checkpoint_activations=true instead, or choose plans whose "
                        f"network has instance norm with -p")  # fmt: skip


def _cut(bounds: list[int], rows: tuple[Tensor, ...], points: tuple[Tensor, Tensor] | None) -> list[list[Tensor]]:
    """The arguments of each part."""
    spans = list(pairwise(bounds))
    cut = [[x[start:stop] for x in rows] for start, stop in spans]
    if points is not None:
        numbers = [int(points[1][start:stop].sum()) for start, stop in spans]
        for arguments, (start, _), mine in zip(cut, spans, points[0].split(numbers), strict=True):
            arguments.append(torch.cat([mine[:, :1] - start, mine[:, 1:]], dim=1))
    return cut
