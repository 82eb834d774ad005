"""Attention within the windows of a map, without rolling it and without a mask.

A shift cuts the last windows in two along an axis, and the mask of MONAI's blocks keeps the parts apart: -100 leaves
e^-100 of a weight. Here each part is a window of its own, cut out of the map where it is. Cells that fill up the last
windows are read, as in MONAI's blocks, but ask for nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from nnssl.networks.tiled_attention import tiled_attention


class Span(NamedTuple):
    """Windows of the same kind that follow each other along an axis."""

    windows: int
    keys: int  # cells of each
    queries: int  # of these, cells of the map; the others come after its end
    place: int  # of the first cell in the window before it was cut


def axis_spans(size: int, side: int, shift: int) -> list[Span]:
    """Cut an axis into windows, in the order of its cells.

    Args:
        size: Cells of the map.
        side: Cells of a window.
        shift: By which windows are moved, less than `side`.
    """
    end = -(-size // side) * side
    bounds = [0, *range(shift, end, side), end] if shift else list(range(0, end + 1, side))
    spans: list[Span] = []
    for start, stop in pairwise(bounds):
        cut = side - shift if shift and start == 0 else 0
        span = Span(1, stop - start, min(max(size - start, 0), stop - start), cut)
        whole = span.queries == side
        if whole and spans and spans[-1].queries == side:
            spans[-1] = spans[-1]._replace(windows=spans[-1].windows + 1)
        else:
            spans.append(span)
    return spans


def grid_attention(attention: Any, x: Tensor, side: Sequence[int], shift: Sequence[int]) -> Tensor:
    """Attention of a `SwinTransformerBlock`, from its norm to its projection.

    Args:
        attention: A `WindowAttention`.
        x: (B, Z, Y, X, C), normalised.
        side: (3,) cells of a window along each axis.
        shift: (3,) cells by which windows are moved.

    Returns:
        (B, Z, Y, X, C).
    """
    spans = [axis_spans(*numbers) for numbers in zip(x.shape[1:4], side, shift, strict=True)]
    filling = [n for sized, w in zip(reversed(x.shape[1:4]), reversed(side), strict=True) for n in (0, -sized % w)]
    filled = F.pad(x, (0, 0, *filling)) if any(filling) else x
    projected: Tensor = attention.proj_drop(attention.proj(_attend(attention, filled, tuple(side), spans, ())))
    return projected


def _attend(
    attention: Any, x: Tensor, side: tuple[int, ...], spans: list[list[Span]], chosen: tuple[Span, ...]
) -> Tensor:
    """Cut the map along one axis after another, attend within windows of one kind, and join the results."""
    axis = len(chosen)
    if axis == len(spans):
        return _same_windows(attention, x, side, chosen)
    dim, kinds = 1 + axis, spans[axis]
    parts = x.split([span.windows * span.keys for span in kinds], dim) if len(kinds) > 1 else [x]
    asking = [(part, span) for part, span in zip(parts, kinds, strict=True) if span.queries]
    read = [_attend(attention, part, side, spans, (*chosen, span)) for part, span in asking]
    return torch.cat(read, dim) if len(read) > 1 else read[0]


def _same_windows(attention: Any, x: Tensor, side: tuple[int, ...], spans: tuple[Span, ...]) -> Tensor:
    """Attention within the windows that the spans name: (B, Z, Y, X, C) to its cells that ask, before projection."""
    batch, heads = len(x), attention.num_heads
    (nz, kz, qz), (ny, ky, qy), (nx, kx, qx) = (span[:3] for span in spans)
    windows = x.reshape(batch, nz, kz, ny, ky, nx, kx, -1).permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4, 6).flatten(0, 3)
    query, key, value = attention.qkv(windows).unflatten(-1, (3, heads, -1)).permute(2, 3, 0, 1, 4)
    if any(span.queries < span.keys for span in spans):
        query = query.unflatten(2, (kz, ky, kx))[:, :, :qz, :qy, :qx].flatten(2, 4)
    read = tiled_attention(query, key, value, _bias(attention, side, spans).to(query.dtype), attention.scale)
    placed = read.view(heads, batch, nz, ny, nx, qz, qy, qx, -1).permute(1, 2, 5, 3, 6, 4, 7, 0, 8)
    return placed.reshape(batch, nz * qz, ny * qy, nx * qx, -1)


def _bias(attention: Any, side: tuple[int, ...], spans: tuple[Span, ...]) -> Tensor:
    """The bias (heads, 1, n, m) of the pairs of queries and keys."""
    whole = prod(side)
    index = attention.relative_position_index[:whole, :whole].view(*side, *side)
    asked = [slice(span.place, span.place + span.queries) for span in spans]
    read = [slice(span.place, span.place + span.keys) for span in spans]
    pairs = index[tuple(asked + read)].flatten(0, 2).flatten(1)
    return F.embedding(pairs, attention.relative_position_bias_table).permute(2, 0, 1)[:, None].contiguous()
