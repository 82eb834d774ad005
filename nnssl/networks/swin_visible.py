"""A Swin transformer on the visible blocks of a volume alone (Alice, section 3.1; Huang et al., Green Hierarchical
Vision Transformer for Masked Image Modeling, NeurIPS 2022).

Blocks are multiples of the coarsest stride, so that every patch merging joins patches of one block. Blocks are cut out
once and are the batch of embedding, norms, feed-forward layers and merging. Only attention looks across blocks: the
visible tokens of a window attend to each other, under the window's shift and relative position bias.
"""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nnssl.core.sending import send
from nnssl.networks.pyramid import BlockMask, assemble_blocks, block_view
from nnssl.networks.tiled_attention import kept_attention
from nnssl.networks.window_attention import biased_attention

_REGIONS = 3  # along an axis: before the last window, and the two parts of it that a shift brings together


class _Rows(NamedTuple):
    """Windows with similar numbers of visible tokens, filled up to the largest of them."""

    tokens: Tensor  # (W, M) numbers of the tokens, any number where filled up
    places: Tensor  # (W, M) their places in the window, the last axis fastest
    filled: Tensor  # (W, M) bool: a token is there
    kept: Tensor  # (t,) indices of these tokens in W * M


def cut_blocks(volumes: Tensor, mask: BlockMask) -> Tensor:
    """Cut the visible blocks out of maps (B, C, Z, Y, X): (B * n, C, *cells of a block)."""
    cells = [extent // blocks for extent, blocks in zip(volumes.shape[2:], mask.hidden.shape[1:], strict=True)]
    rows = block_view(volumes, cells).flatten(1, 3)
    first = torch.arange(len(rows), device=volumes.device)[:, None]
    return rows[first, mask.visible].flatten(0, 1)


def paste_blocks(blocks: Tensor, mask: BlockMask) -> Tensor:
    """Put blocks (B * n, C, *cells) back to their places in maps (B, C, Z, Y, X) of 0: the inverse of `cut_blocks`."""
    batch, *grid = mask.hidden.shape
    channels, *cells = blocks.shape[1:]
    rows = blocks.new_zeros(batch, prod(grid), channels, *cells)
    first = torch.arange(batch, device=blocks.device)[:, None]
    rows[first, mask.visible] = blocks.unflatten(0, (batch, -1))
    return assemble_blocks(rows.unflatten(1, grid))


def visible_stages(transformer: Any, volumes: Tensor, mask: BlockMask) -> list[Tensor]:
    """As `SwinTransformer.forward` of MONAI, but hidden blocks take no part.

    The convolutions that a SwinUNETR v2 has before its stages read zeros in hidden blocks. Zeros that MONAI adds beyond
    the edge of a map to fill its last windows are no visible tokens: they take no part either.

    Args:
        transformer: MONAI's `SwinTransformer`.
        volumes: (B, C, Z, Y, X); the values of hidden voxels are never read.
        mask: Blocks whose sides are multiples of the coarsest stride, 32.

    Returns:
        The five maps, finest first, with 0 in hidden blocks.
    """
    cells = transformer.pos_drop(transformer.patch_embed(cut_blocks(volumes, mask)))
    stages = [transformer.proj_out(cells, True)]
    for number in range(1, transformer.num_layers + 1):
        if transformer.use_v2:
            (convolutions,) = getattr(transformer, f"layers{number}c")
            cells = cut_blocks(convolutions(paste_blocks(cells, mask)), mask)
        (layer,) = getattr(transformer, f"layers{number}")
        cells = run_layer(layer, cells, mask)
        stages.append(transformer.proj_out(cells, True))
    return [paste_blocks(stage, mask) for stage in stages]


def run_layer(layer: Any, cells: Tensor, mask: BlockMask) -> Tensor:
    """Run the blocks of a `BasicLayer` and its merging on (B * n, C, *cells)."""
    tokens = cells.movedim(1, -1).contiguous()
    shifts = (layer.no_shift, layer.shift_size)
    plans = [visible_windows(mask, tokens.shape[1:4], layer.window_size, shift) for shift in shifts[: layer.depth]]
    for number, block in enumerate(layer.blocks):
        rows = plans[number % 2]
        if block.use_checkpoint and torch.is_grad_enabled():
            read = checkpoint(_attend, block, tokens, rows, use_reentrant=False, context_fn=kept_attention)
            tokens = tokens + block.drop_path(read)
            tokens = tokens + checkpoint(block.forward_part2, tokens, use_reentrant=False)
        else:
            tokens = tokens + block.drop_path(_attend(block, tokens, rows))
            tokens = tokens + block.forward_part2(tokens)
    merged: Tensor = layer.downsample(tokens)
    return merged.movedim(-1, 1)


def visible_windows(
    mask: BlockMask, cells: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]
) -> list[_Rows]:
    """Sort the visible tokens of a stage into windows.

    A window that the shift makes of two ends of the volume counts as several, because tokens of different ends do not
    attend to each other. Windows without a visible token are dropped; the others are grouped by halves of the largest
    number of tokens. These numbers, which shapes depend on, are counted on the host; the tokens are sorted on the
    mask's device.

    Args:
        mask: The visible blocks.
        cells: (3,) tokens of a block along each axis.
        window: (3,) tokens of a window along each axis, fewer where the volume is smaller.
        shift: (3,) tokens along each axis; 0 where the volume is no larger than a window.
    """
    axes = [_Axis.of(*numbers) for numbers in zip(mask.hidden.shape[1:], cells, window, shift, strict=True)]
    counts = _tokens_of_windows(mask, axes)
    begins, groups = counts.cumsum(0) - counts, _groups(counts)
    windows = torch.stack([torch.cat([x[chosen] for _, chosen in groups]) for x in (begins, counts)])
    (sent,) = send([windows], mask.visible.device)
    numbers, places = _places_in_windows(mask, axes)
    order, rows = numbers.argsort(stable=True), []
    for (most, chosen), part in zip(groups, sent.split([len(x) for _, x in groups], dim=1), strict=True):
        slots = torch.arange(most, device=order.device)
        filled = slots < part[1][:, None]
        tokens = order[(part[0][:, None] + slots).clamp(max=len(order) - 1)]
        kept = (~filled).flatten().to(torch.uint8).argsort(stable=True)[: int(counts[chosen].sum())]
        rows.append(_Rows(tokens, places[tokens], filled, kept))
    return rows


class _Axis(NamedTuple):
    """The windows along an axis of a stage."""

    blocks: int
    cells: int  # of a block
    side: int  # of a window
    moved: int  # by the shift
    windows: int

    @classmethod
    def of(cls, blocks: int, cells: int, window: int, shift: int) -> _Axis:
        """A single window, unmoved, where the axis is no larger."""
        size = blocks * cells
        side, moved = (window, shift) if size > window else (size, 0)
        return cls(blocks, cells, side, moved, -(-size // side))

    def places(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """Numbers of the windows of cells, each region a window of its own, and the cells' places in them."""
        rolled = (cells - self.moved) % (self.windows * self.side)
        last = (self.windows - 1) * self.side
        region = (rolled >= last).long() + (rolled >= last + self.side - self.moved)
        return rolled // self.side * _REGIONS + region, rolled % self.side

    def cells_of_blocks(self) -> Tensor:
        """How many cells of each block are in each window: (blocks, windows * regions), on the host."""
        number, _ = self.places(torch.arange(self.blocks * self.cells))
        table = torch.zeros(len(number), self.windows * _REGIONS, dtype=torch.int64)
        return table.scatter(1, number[:, None], 1).view(self.blocks, self.cells, -1).sum(1)


def _tokens_of_windows(mask: BlockMask, axes: list[_Axis]) -> Tensor:
    """Number of visible tokens of every window of the batch, on the host."""
    hidden = mask.hidden.cpu() if mask.on_host is None else mask.on_host
    seen = (~hidden).long()
    return torch.einsum("bzyx,zi,yj,xk->bijk", seen, *(axis.cells_of_blocks() for axis in axes)).flatten()


def _groups(counts: Tensor) -> list[tuple[int, Tensor]]:
    """Windows with similar numbers of tokens: the largest possible number, and which windows."""
    groups, most = [], int(counts.max())
    while most:
        chosen = ((counts > most // 2) & (counts <= most)).nonzero()[:, 0]
        if len(chosen):
            groups.append((most, chosen))
        most //= 2
    return groups


def _places_in_windows(mask: BlockMask, axes: list[_Axis]) -> tuple[Tensor, Tensor]:
    """Number of the window, and place in it, of all T visible tokens: (T,) each."""
    batch, *grid = mask.hidden.shape
    visible = mask.visible.flatten()
    tokens = len(visible), *(axis.cells for axis in axes)
    blocks = (visible // (grid[1] * grid[2]), visible // grid[2] % grid[1], visible % grid[2])
    volumes = torch.arange(batch, device=visible.device)[:, None].expand_as(mask.visible)
    numbers = volumes.reshape(-1, 1, 1, 1).expand(tokens)
    places = torch.zeros_like(numbers)
    for number, (block, axis) in enumerate(zip(blocks, axes, strict=True)):
        cells = block[:, None] * axis.cells + torch.arange(axis.cells, device=visible.device)
        shape = [len(visible), *(axis.cells if a == number else 1 for a in range(3))]
        of_axis, inside = (x.view(shape) for x in axis.places(cells))
        numbers, places = numbers * (axis.windows * _REGIONS) + of_axis, places * axis.side + inside
    return numbers.flatten(), places.flatten()


def _attend(block: Any, tokens: Tensor, rows: list[_Rows]) -> Tensor:
    """Attention of a `SwinTransformerBlock`, with its norm, on tokens (B * n, *cells, C)."""
    attention, channels = block.attn, tokens.shape[-1]
    triples = attention.qkv(block.norm1(tokens)).view(-1, 3, attention.num_heads, channels // attention.num_heads)
    dropped = attention.attn_drop.p if attention.training else 0.0
    attended = []
    for row in rows:
        query, key, value = triples[row.tokens].permute(2, 0, 3, 1, 4)  # (W, heads, M, C / heads) each
        relative = attention.relative_position_index[row.places[:, :, None], row.places[:, None, :]]
        bias = F.embedding(relative, attention.relative_position_bias_table).permute(0, 3, 1, 2)
        bias = bias.masked_fill(~row.filled[:, None, None, :], float("-inf"))
        read = biased_attention(query[None], key[None], value[None], bias, None, attention.scale, dropped)[0]
        attended.append(read.transpose(1, 2).reshape(-1, channels)[row.kept])
    places = torch.cat([row.tokens.flatten()[row.kept] for row in rows])
    joined = torch.cat(attended)
    ordered = torch.empty_like(joined).index_copy(0, places, joined)
    projected: Tensor = attention.proj_drop(attention.proj(ordered))
    return projected.view(tokens.shape)
