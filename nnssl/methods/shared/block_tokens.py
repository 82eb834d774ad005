"""One token for every visible block of a volume, from any backbone, and the light decoder that predicts the others."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2

import torch
from torch import Tensor, nn

from nnssl.core.errors import UserError
from nnssl.networks.pyramid import BlockMask, FeaturePyramid, format_size
from nnssl.networks.sparse import sparse_levels

_LEAST_BLOCK, _LARGEST_BLOCK = 8, 16  # voxels (methods.md 4.1)


def block_size(backbone: FeaturePyramid, patch_size: Sequence[int], wanted: Sequence[int] | None) -> tuple[int, ...]:
    """Choose the size (Z, Y, X) of the blocks that masks consist of.

    On every axis it is near the stride of the coarsest level, limited to 8 to 16 voxels: the nearest of the sizes that
    divide the patch and fit the strides of all levels. A Swin transformer, which discards whole blocks, needs multiples
    of its coarsest stride.

    Args:
        backbone: The encoder; for a network of tokens, only the size of a token fits.
        patch_size: (Z, Y, X) voxels.
        wanted: The user's choice, or None.

    Raises:
        UserError: No size fits, or the wanted one does not; the message names the option to set.
    """
    fitting = [
        [n for n in range(unit, extent + 1, unit) if extent % n == 0 and all(n % s == 0 or s % n == 0 for s in steps)]
        for extent, steps, unit in zip(patch_size, zip(*backbone.strides, strict=True), backbone.mask_unit, strict=True)
    ]
    if backbone.encodes_blocks:
        fitting = [[n for n in sizes if n == step] for sizes, step in zip(fitting, backbone.strides[-1], strict=True)]
    if wanted is not None:
        if any(n not in sizes for n, sizes in zip(wanted, fitting, strict=True)):
            possible = " x ".join("/".join(map(str, sizes)) for sizes in fitting)
            raise UserError(f"blocks of {format_size(wanted)} voxels do not fit the network and the patch "
                            f"{format_size(patch_size)}; set -o mask_block to one of {possible}")  # fmt: skip
        return tuple(wanted)
    if not all(fitting):
        raise UserError(f"no blocks fit the patch {format_size(patch_size)}; set -o patch_size to multiples of "
                        f"{format_size(backbone.strides[-1])}")  # fmt: skip
    usual = [min(max(step, _LEAST_BLOCK), _LARGEST_BLOCK) for step in backbone.strides[-1]]
    return tuple(
        min(sizes, key=lambda n, best=best: abs(log2(n / best)))  # type: ignore[misc]
        for sizes, best in zip(fitting, usual, strict=True)
    )


class BlockTokens(nn.Module):
    """The levels of a backbone on the grid of the blocks: one token per block.

    Finer levels are averaged over a block, coarser ones repeated. Each is normalised over its channels and mapped
    linearly to the tokens' width, and the sum lets every part of the encoder learn. The tokens of a backbone that
    encodes blocks itself (a ViT) are taken unchanged.

    Args:
        backbone: Encoder levels.
        width: Width of the tokens; a backbone of tokens has its own.
    """

    def __init__(self, backbone: FeaturePyramid, width: int) -> None:
        super().__init__()
        self.width = backbone.channels[-1] if backbone.encodes_blocks else width
        own = () if backbone.encodes_blocks else backbone.channels
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels in own)
        self.layers = nn.ModuleList(nn.Linear(channels, width, bias=level == 0) for level, channels in enumerate(own))

    def forward(
        self, backbone: FeaturePyramid, volumes: Tensor, grid: Sequence[int], mask: BlockMask | None = None,
        sparse: bool = False,
    ) -> Tensor:  # fmt: skip
        """Tokens (B, N, width) of the blocks of volumes (B, C, Z, Y, X), the last axis fastest.

        Args:
            backbone: The one of the constructor, or a copy.
            volumes: Its input.
            grid: Blocks along each axis; N is their product.
            mask: Blocks that it must not see, whose tokens are meaningless; None: all are visible.
            sparse: Let a convolutional backbone work on visible cells alone, see `nnssl.networks.sparse`.
        """
        if mask is None:
            levels = backbone(volumes)
        elif sparse and backbone.convolutional:
            levels = sparse_levels(backbone, volumes, mask)
        else:
            levels = backbone.masked_levels(volumes, mask)
        if not len(self.layers):
            return levels[-1].flatten(2).mT
        total: Tensor | None = None
        for level, norm, layer in zip(levels, self.norms, self.layers, strict=True):
            tokens = layer(norm(_to_grid(level, grid).flatten(2).mT))
            total = tokens if total is None else total + tokens
        assert total is not None
        return total


def _to_grid(level: Tensor, grid: Sequence[int]) -> Tensor:
    """Average the cells (B, C, Z, Y, X) of a finer map over the blocks of a grid, repeat those of a coarser one."""
    for axis, blocks in enumerate(grid):
        cells = level.shape[axis + 2]
        if cells > blocks:
            level = level.unflatten(axis + 2, (blocks, cells // blocks)).mean(axis + 3)
        elif cells < blocks:
            shape = (*level.shape[: axis + 3], blocks // cells, *level.shape[axis + 3 :])
            level = level.unsqueeze(axis + 3).expand(shape).flatten(axis + 2, axis + 3)
    return level


class LightDecoder(nn.Module):
    """Transformer that predicts all blocks from the visible ones (MAE; Alice, section 3.1).

    Its positions are sines and cosines of the blocks' places in the grid, so that any patch size works.

    Args:
        encoder_width: Width of the visible tokens.
        values: Values per block: voxels times channels.
        width: Width of the decoder, divisible by `heads`.
        depth: Number of layers.
        heads: Number of attention heads per layer.
    """

    def __init__(self, encoder_width: int, values: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.mask_token, std=0.02)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.predict = nn.Linear(width, values)

    def forward(self, visible: Tensor, places: Tensor, grid: Sequence[int]) -> Tensor:
        """Decoded tokens (B, N, width) of all blocks.

        Args:
            visible: (B, n, encoder_width) tokens.
            places: (B, n) their numbers among the N blocks.
            grid: Blocks along each axis.
        """
        embedded = self.embed(visible)
        width = embedded.shape[-1]
        positions = sine_positions(grid, width, embedded.device)
        tokens = self.mask_token.to(embedded.dtype).expand(len(visible), len(positions), width)
        tokens = tokens.scatter(1, places[..., None].expand(-1, -1, width), embedded) + positions.to(embedded.dtype)
        for layer in self.layers:
            tokens = layer(tokens)
        decoded: Tensor = self.norm(tokens)
        return decoded


def sine_positions(grid: Sequence[int], width: int, device: torch.device | None = None) -> Tensor:
    """Sines and cosines of the places of a grid's cells, a third of the width for each axis.

    Args:
        grid: Cells along each axis.
        width: Width of the vectors; the remainder after six equal parts is 0.
        device: Device of the result.

    Returns:
        (N, width) float32, cells with the last axis fastest.
    """
    part = width // 6
    rates = 10000.0 ** -(torch.arange(part, device=device) / max(part, 1))
    axes = [torch.arange(n, device=device)[:, None] * rates for n in grid]
    waves = [torch.cat([axis.sin(), axis.cos()], dim=1) for axis in axes]
    z, y, x = (
        wave.view(*(n if a == axis else 1 for a, n in enumerate(grid)), 2 * part).expand(*grid, 2 * part)
        for axis, wave in enumerate(waves)
    )
    positions = torch.cat([z, y, x], dim=-1).flatten(0, 2)
    return nn.functional.pad(positions, (0, width - 6 * part))
