"""Attention with a bias in tiles that fit into the cache of a CPU, which the backward pass computes again.

Torch's kernel for CPUs gives the bias no gradient, and it is slower for thin heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_TILE = 400_000  # values of a tile: 1.6 MB of float32, about the second-level cache of a core


def in_tiles(x: Tensor, dropped: float) -> bool:
    """Whether attention on x works in tiles.

    Args:
        x: The tensor that a layer multiplies, or the query.
        dropped: Probability of dropout of the matrix.
    """
    precise = x.dtype in (torch.float32, torch.float64)
    return x.device.type == "cpu" and precise and not dropped and not torch.compiler.is_compiling()


def tiled_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
    """softmax(scale * query key^T + bias) value.

    Args:
        query: (heads, R, n, d) of R windows.
        key: (heads, R, m, d).
        value: (heads, R, m, d).
        bias: (heads, W, n, m). Window r has bias r % W, or all windows have the only one.
        scale: Of the products.

    Returns:
        (heads, R, n, d).
    """
    result: Tensor = _TiledAttention.apply(query, key, value, bias, scale)
    return result


class _TiledAttention(torch.autograd.Function):
    """Products with a thin result are made transposed, which is up to 5 times as fast."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> Tensor:
        read = _Results.next_kept()
        if read is None:
            queries, keys, values = (query * scale).contiguous(), key.contiguous(), value.contiguous()
            read = torch.empty_like(queries)
            space = _space(queries, keys)
            for place, added in _tiles(queries, keys, bias):
                weights = _weights(queries[place], keys[place], added, space)
                read[place] = (values[place].mT @ weights.mT).mT
            _Results.keep(read)
        ctx.save_for_backward(query, key, value, bias, read)
        ctx.scale = scale
        return read

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, read = ctx.saved_tensors
        query, key, value = (query * ctx.scale).contiguous(), key.contiguous(), value.contiguous()
        gradient = gradient.contiguous()
        shared = (gradient * read).sum(-1, keepdim=True).neg_()  # what softmax takes from every pair of a query
        to_query, to_key, to_value = (torch.empty_like(x) for x in (query, key, value))
        to_bias = torch.zeros_like(bias, memory_format=torch.contiguous_format)
        space, other_space = _space(query, key), _space(query, key)
        for place, added in _tiles(query, key, bias):
            weights, to_read = _weights(query[place], key[place], added, space), gradient[place]
            to_value[place] = (to_read.mT @ weights).mT
            to_sums = other_space[: weights.numel()].view_as(weights)
            torch.baddbmm(shared[place], to_read, value[place].mT, out=to_sums).mul_(weights)
            to_query[place] = (key[place].mT @ to_sums.mT).mT
            to_key[place] = (query[place].mT @ to_sums).mT
            head, windows = place
            if bias.shape[1] == 1:
                to_bias[head] += to_sums.sum(0)
            else:
                to_bias[head, _of_bias(windows, bias)] += to_sums
        return to_query.mul_(ctx.scale), to_key, to_value, to_bias, None


def _tiles(query: Tensor, key: Tensor, bias: Tensor) -> Iterator[tuple[tuple[int, slice], Tensor]]:
    """Head and windows of each tile, and what is added to their products: (1 or windows, n, m)."""
    heads, rows, own = query.shape[0], query.shape[1], bias.shape[1]
    most = _most_windows(query, key)
    for head in range(heads):
        for first in range(0, rows, rows if own == 1 else own):
            stop = rows if own == 1 else first + own
            for start in range(first, stop, most):
                windows = slice(start, min(start + most, stop))
                yield (head, windows), bias[head] if own == 1 else bias[head, _of_bias(windows, bias)]


def _of_bias(windows: slice, bias: Tensor) -> slice:
    start = windows.start % bias.shape[1]
    return slice(start, start + windows.stop - windows.start)


def _most_windows(query: Tensor, key: Tensor) -> int:
    return max(1, min(query.shape[1], _TILE // (query.shape[2] * key.shape[2])))


def _space(query: Tensor, key: Tensor) -> Tensor:
    """Memory for the matrices of a tile, which all tiles share."""
    return query.new_empty(_most_windows(query, key) * query.shape[2] * key.shape[2])


def _weights(query: Tensor, key: Tensor, added: Tensor, space: Tensor) -> Tensor:
    """softmax(query key^T + added) of a tile (b, n, d), in the given memory."""
    shape = len(query), query.shape[1], key.shape[1]
    weights = space[: shape[0] * shape[1] * shape[2]].view(shape)
    torch.baddbmm(added, query, key.mT, out=weights)
    return torch.softmax(weights, -1, out=weights)


def kept_attention() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """`context_fn` of a checkpoint that keeps results of attention in tiles, the costliest to compute again."""
    results: list[Tensor] = []
    return _Results(results, again=False), _Results(results, again=True)


class _Results(AbstractContextManager["_Results"]):
    """While it is entered, results of attention are added to a list, or taken from it in their order."""

    _entered: ClassVar[list[_Results]] = []

    def __init__(self, results: list[Tensor], again: bool) -> None:
        self.results, self.again, self.taken = results, again, 0

    def __enter__(self) -> _Results:
        self.taken = 0
        self._entered.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._entered.pop()

    @classmethod
    def next_kept(cls) -> Tensor | None:
        """The result that the forward pass had here, or None where it must be computed."""
        if not cls._entered or not cls._entered[-1].again:
            return None
        of_pass = cls._entered[-1]
        of_pass.taken += 1
        return of_pass.results[of_pass.taken - 1].detach()

    @classmethod
    def keep(cls, read: Tensor) -> None:
        """Keep a result if its pass is to be computed again."""
        if cls._entered:
            cls._entered[-1].results.append(read.detach())
