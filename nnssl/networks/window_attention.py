"""Attention within windows, with a bias to every pair of places, that never keeps the matrix of all pairs.

MONAI's layer makes softmax(scale * q k^T + bias + mask) v in steps, and autograd keeps several matrices
(windows, heads, n, n). Here `scaled_dot_product_attention` computes the same, or, on a CPU, tiles that fit into its
cache, which the backward pass computes again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_TILE = 400_000  # values of a tile: 1.6 MB of float32, about the second-level cache of a core


class WindowAttention(nn.Module):
    """MONAI's layer of this name with the same parameters and buffer, under the same names and in the same order.

    Args:
        layer: The layer of MONAI, whose parameters this one takes.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.num_heads: int = layer.num_heads
        self.window_size: tuple[int, ...] = tuple(layer.window_size)
        self.scale: float = layer.scale
        self.relative_position_bias_table = layer.relative_position_bias_table
        self.register_buffer("relative_position_index", layer.relative_position_index)
        self.qkv, self.attn_drop, self.proj, self.proj_drop = layer.qkv, layer.attn_drop, layer.proj, layer.proj_drop

    def relative_bias(self, cells: int) -> Tensor:
        """The bias (heads, n, n) of the pairs among the first n places of a window."""
        index: Any = self.relative_position_index
        return F.embedding(index[:cells, :cells], self.relative_position_bias_table).permute(2, 0, 1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Map windows (B * W, n, C) to the same shape.

        Args:
            x: The W windows of a volume follow each other.
            mask: (W, n, n) to add for every head; None: nothing, and W is 1.
        """
        count, cells, channels = x.shape
        windows = 1 if mask is None else len(mask)
        triples = self.qkv(x).view(-1, windows, cells, 3, self.num_heads, channels // self.num_heads)
        query, key, value = triples.permute(3, 0, 1, 4, 2, 5)
        bias, masks = self.relative_bias(cells)[None], None if mask is None else mask[:, None]
        dropped = self.attn_drop.p if self.training else 0.0
        read = biased_attention(query, key, value, bias, masks, self.scale, dropped)
        projected: Tensor = self.proj_drop(self.proj(join_heads(read).view(count, cells, channels)))
        return projected


def fuse_windows(module: nn.Module) -> None:
    """Put `WindowAttention` in the place of every layer of MONAI that is called so."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "WindowAttention" and not isinstance(child, WindowAttention):
                setattr(parent, name, WindowAttention(child))


def join_heads(read: Tensor) -> Tensor:
    """(..., heads, n, d) as (..., n, heads * d)."""
    return torch.cat(read.unbind(-3), dim=-1)  # a view would be of the kernel's strides, which ONNX has not


def biased_attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, mask: Tensor | None, scale: float, dropped: float = 0.0
) -> Tensor:
    """softmax(scale * query key^T + bias + mask) value, in B volumes of W windows.

    Args:
        query: (B, W, heads, n, d).
        key: (B, W, heads, n, d).
        value: (B, W, heads, n, d).
        bias: (1 or W, heads, n, n), of any floating type.
        mask: (W, 1, n, n) without gradient, or None.
        scale: Of the products.
        dropped: Probability of dropout of the matrix.

    Returns:
        (B, W, heads, n, d).
    """
    if _in_tiles(query, dropped):
        masks = None if mask is None else mask.to(query.dtype)
        tiled: Tensor = _TiledAttention.apply(query, key, value, bias.to(query.dtype), masks, scale)
        return tiled
    added = bias if mask is None else bias + mask
    windows, heads = query.shape[1:3]
    first, parts = (0, (-1, windows)) if len(added) == 1 else (1, (windows, heads))  # windows are volumes, or heads
    query, key, value = (x.flatten(first, first + 1) for x in (query, key, value))
    added = added.flatten(0, 1)[None].to(query.dtype)
    read = F.scaled_dot_product_attention(query, key, value, added, dropped, scale=scale)
    return read.unflatten(first, parts)


def _in_tiles(query: Tensor, dropped: float) -> bool:
    """Whether to work in tiles: torch's kernel for CPUs gives the bias no gradient, and it is slower for thin heads."""
    precise = query.dtype in (torch.float32, torch.float64)
    return query.device.type == "cpu" and precise and not dropped and not torch.compiler.is_compiling()


class _TiledAttention(torch.autograd.Function):
    """`biased_attention` in tiles. Products with a thin result are made transposed, which is up to 5 times as fast."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        query = query * scale
        ctx.save_for_backward(query, key, value, bias, mask)
        ctx.scale = scale
        read = torch.empty_like(query)
        for place, added in _tiles(query, bias, mask):
            weights = _weights(query[place], key[place], added)
            read[place] = (value[place].mT @ weights.mT).mT
        return read

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, mask = ctx.saved_tensors
        to_query, to_key, to_value = (torch.empty_like(x) for x in (query, key, value))
        to_bias = torch.zeros_like(bias)
        for place, added in _tiles(query, bias, mask):
            weights, to_read = _weights(query[place], key[place], added), gradient[place]
            to_value[place] = (to_read.mT @ weights).mT
            to_sums = torch._softmax_backward_data(to_read @ value[place].mT, weights, -1, weights.dtype)
            to_query[place] = (key[place].mT @ to_sums.mT).mT
            to_key[place] = (query[place].mT @ to_sums).mT
            _, window, heads = place
            for of_volume in to_sums:  # a sum over them would make a matrix first
                to_bias[window % len(bias), heads] += of_volume
        return to_query.mul_(ctx.scale), to_key, to_value, to_bias, None, None


def _tiles(query: Tensor, bias: Tensor, mask: Tensor | None) -> Iterator[tuple[tuple[slice, int, slice], Tensor]]:
    """Volumes, window and heads of each tile, and what is added to its products: (heads, n, n)."""
    volumes, windows, heads, cells, _ = query.shape
    most = max(1, _TILE // cells**2)
    for window in range(windows):
        added = bias[window % len(bias)] if mask is None else bias[window % len(bias)] + mask[window]
        for head in range(0, heads, most):
            some = slice(head, head + most)
            for volume in range(0, volumes, max(1, most // heads)):
                yield (slice(volume, volume + max(1, most // heads)), window, some), added[some]


def _weights(query: Tensor, key: Tensor, added: Tensor) -> Tensor:
    """softmax(query key^T + added) of a tile (b, heads, n, d)."""
    sums = query.flatten(0, 1) @ key.flatten(0, 1).mT
    return sums.unflatten(0, query.shape[:2]).add_(added).softmax(-1)
