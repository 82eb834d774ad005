"""Attention within windows, with a bias to every pair of places, that never keeps the matrix of all pairs.

MONAI's layer makes softmax(scale * q k^T + bias + mask) v in steps, and autograd keeps several matrices
(windows, heads, n, n). Here `scaled_dot_product_attention` computes the same, or, on a CPU, tiles that fit into its
cache (`tiled_attention`), without rolling and masking the map (`window_grid`).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nnssl.networks.monai_parts import import_monai
from nnssl.networks.tiled_attention import in_tiles, kept_attention, tiled_attention
from nnssl.networks.window_grid import grid_attention


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
    """Put `WindowAttention` in the place of every layer of MONAI that is called so, and make the blocks around it ours.

    Blocks and stages keep their parameters, their names and their order.
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__ == "WindowAttention" and not isinstance(child, WindowAttention):
                setattr(parent, name, WindowAttention(child))
        if (own := _OWN.get(type(parent).__name__)) and not isinstance(parent, own):
            parent.__class__ = _before(own, type(parent))  # type: ignore[assignment]


@cache
def _before(own: type, plain: type[nn.Module]) -> type[nn.Module]:
    return type(plain.__name__, (own, plain), {})


class _Block:
    """Comes before MONAI's `SwinTransformerBlock`."""

    def forward(self: Any, x: Tensor, mask_matrix: Tensor | None) -> Tensor:
        """Map (B, Z, Y, X, C) to the same shape."""
        if not (self.use_checkpoint and _on_grid(self, x)):
            mapped: Tensor = super().forward(x, mask_matrix)  # type: ignore[misc]
            return mapped
        read = checkpoint(self.forward_part1, x, None, use_reentrant=False, context_fn=kept_attention)
        x = x + self.drop_path(read)
        return x + checkpoint(self.forward_part2, x, use_reentrant=False)

    def forward_part1(self: Any, x: Tensor, mask_matrix: Tensor | None) -> Tensor:
        """Norm and attention."""
        if not _on_grid(self, x):
            read: Tensor = super().forward_part1(x, mask_matrix)  # type: ignore[misc]
            return read
        return grid_attention(self.attn, self.norm1(x), *_windows(self, x))


class _Stage:
    """Comes before MONAI's `BasicLayer`."""

    def forward(self: Any, x: Tensor) -> Tensor:
        """Map (B, C, Z, Y, X) to the stage's output, without making the mask that blocks on the grid do not read."""
        if not _on_grid(self.blocks[0], x):
            mapped: Tensor = super().forward(x)  # type: ignore[misc]
            return mapped
        x = x.movedim(1, -1).contiguous()
        for block in self.blocks:
            x = block(x, None)
        if self.downsample is not None:
            x = self.downsample(x)
        return x.movedim(-1, 1)


_OWN = {"SwinTransformerBlock": _Block, "BasicLayer": _Stage}


def _on_grid(block: Any, x: Tensor) -> bool:
    """Whether a block attends in tiles, see `nnssl.networks.tiled_attention`."""
    dropped = block.attn.attn_drop.p if block.training else 0.0
    return x.ndim == 5 and in_tiles(x, dropped) and not torch.is_autocast_enabled("cpu")


def _windows(block: Any, x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sides and shifts of the windows of a map (B, Z, Y, X, C)."""
    (sizes,) = import_monai("SwinUNETR", "monai.networks.nets.swin_unetr", "get_window_size")
    side, shift = sizes(x.shape[1:4], block.window_size, block.shift_size)
    return side, shift


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
    if mask is None and in_tiles(query, dropped):
        volumes = query.shape[:2]
        query, key, value = (x.permute(2, 0, 1, 3, 4).flatten(1, 2) for x in (query, key, value))
        read = tiled_attention(query, key, value, bias.to(query.dtype).transpose(0, 1), scale)
        return read.unflatten(1, volumes).permute(1, 2, 0, 3, 4)
    added = bias if mask is None else bias + mask
    windows, heads = query.shape[1:3]
    first, parts = (0, (-1, windows)) if len(added) == 1 else (1, (windows, heads))  # windows are volumes, or heads
    query, key, value = (x.flatten(first, first + 1) for x in (query, key, value))
    # With another stride than 1 of the last axis, which the bias has, a card would make the whole matrix, in float32.
    added = added.flatten(0, 1)[None].to(query.dtype).contiguous()
    read = F.scaled_dot_product_attention(query, key, value, added, dropped, scale=scale)
    return read.unflatten(first, parts)
