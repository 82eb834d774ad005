"""What nnFormer has beside attention within one map: embedding, changes of resolution, skip attention."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.networks.monai_parts import import_monai
from nnssl.networks.window_attention import WindowAttention, biased_attention, join_heads


def last_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Layer normalisation of a map (B, C, Z, Y, X) over its channels."""
    normed: Tensor = norm(x.movedim(1, -1))
    return normed.movedim(-1, 1).contiguous()


class Embedding(nn.Module):
    """From the image to half its resolution by four 3x3x3 convolutions, the first with stride 2 (paper, 3.2).

    GELU and layer normalisation follow each of them but the last, which layer normalisation follows alone.
    """

    def __init__(self, input_channels: int, width: int) -> None:
        super().__init__()
        steps = [(input_channels, width // 2, 2), (width // 2, width // 2, 1), (width // 2, width, 1),
                 (width, width, 1)]  # fmt: skip
        self.convolutions = nn.ModuleList(nn.Conv3d(a, b, 3, stride, 1) for a, b, stride in steps)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _, width, _ in steps)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, Z, Y, X) to (B, width, Z / 2, Y / 2, X / 2)."""
        last = len(self.convolutions) - 1
        for number, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = convolution(x)
            x = last_norm(norm, x if number == last else F.gelu(x))
        return x


class Lowering(nn.Module):
    """Layer normalisation and a 3x3x3 convolution of stride 2 that doubles the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.convolution = nn.Conv3d(width, 2 * width, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, Z, Y, X) to (B, 2 width, Z / 2, Y / 2, X / 2)."""
        mapped: Tensor = self.convolution(last_norm(self.norm, x))
        return mapped


class Raising(nn.Module):
    """Layer normalisation and a transposed convolution of stride 2 that halves the channels to `width`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2 * width)
        self.convolution = nn.ConvTranspose3d(2 * width, width, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 2 width, Z, Y, X) to (B, width, 2 Z, 2 Y, 2 X)."""
        mapped: Tensor = self.convolution(last_norm(self.norm, x))
        return mapped


class SkipAttentionBlock(nn.Module):
    """Attention within windows whose queries are the decoder's map, and keys and values the encoder's (paper, 3.4).

    The decoder's map is the query as it is, without a linear layer. Both maps are added to the result, then a
    feed-forward layer follows.

    Args:
        width: C of both maps.
        heads: Number of attention heads.
        window: Side of the windows, in cells.
        drop_path: Rate of stochastic depth.
    """

    def __init__(self, width: int, heads: int, window: int, drop_path: float) -> None:
        super().__init__()
        (block,) = import_monai("nnFormer", "monai.networks.nets.swin_unetr", "SwinTransformerBlock")
        side = (window,) * 3
        self.block: Any = block(width, heads, side, (0, 0, 0), drop_path=drop_path)
        self.block.attn.qkv = nn.Linear(width, 2 * width)  # keys and values
        self.block.attn = WindowAttention(self.block.attn)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map the decoder's map and the encoder's (B, C, Z, Y, X) to the same shape."""
        block = self.block
        x, skip = x.movedim(1, -1), skip.movedim(1, -1)
        tokens = x + skip + block.drop_path(self._attend(block.norm1(x), block.norm1(skip)))
        result: Tensor = tokens + block.forward_part2(tokens)
        return result.movedim(-1, 1).contiguous()

    def _attend(self, x: Tensor, skip: Tensor) -> Tensor:
        attention, (batch, *size) = self.block.attn, x.shape[:-1]
        partition, reverse, side_of = import_monai(
            "nnFormer", "monai.networks.nets.swin_unetr", "window_partition", "window_reverse", "get_window_size"
        )
        side = side_of(size, self.block.window_size)
        padding = [n for extent, w in zip(reversed(size), reversed(side), strict=True) for n in (0, -extent % w)]
        queries, context = (partition(F.pad(t, (0, 0, *padding)), side) for t in (x, skip))
        heads, cells = attention.num_heads, queries.shape[1]
        query = queries.unflatten(-1, (heads, -1)).transpose(1, 2)
        key, value = attention.qkv(context).unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
        bias = attention.relative_bias(cells)[None]
        query, key, value = (x[:, None] for x in (query, key, value))
        read = biased_attention(query, key, value, bias, None, attention.scale)
        windows = attention.proj(join_heads(read)[:, 0]).unflatten(1, side)
        whole = [batch, *(extent + -extent % w for extent, w in zip(size, side, strict=True))]
        result: Tensor = reverse(windows, side, whole)[:, : size[0], : size[1], : size[2]]
        return result
