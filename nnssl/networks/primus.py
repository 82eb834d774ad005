"""Primus as a feature pyramid, and as a segmentation network that plans can name."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.core.errors import UserError
from nnssl.networks.fpn_unet import SegmentationNetwork
from nnssl.networks.pyramid import BlockMask, FeaturePyramid, Levels, Stride, check_three_axes, format_size
from nnssl.networks.vit import as_map, resized_positions

POSITIONS = "network.eva.pos_embed"
_ROTATED = 6  # the width of a head must be a multiple: sines and cosines of three axes
_ANY_NUMBER_OF_CLASSES = 2  # the up-projection is not part of a backbone


class Primus(SegmentationNetwork):
    """The Primus of dynamic_network_architectures (Wald et al., arXiv 2503.01835) under the names of its state dict.

    Tokens of patches, with learned and rotary positions, pass through EVA-02 blocks, and an up-projection makes logits
    of them. Plans name it as "nnssl.networks.primus.Primus".

    Unlike the library's class it takes images of any size that consists of whole tokens: learned positions are
    interpolated to it, and rotary ones count tokens, as in a Primus that was built for that size. It can also leave
    tokens out, which the library's `patch_drop_rate` cannot do with the current timm. It has no register tokens.

    Args:
        input_channels: Number of channels of the image.
        num_classes: Number of output channels; the widths of the up-projection depend on it.
        strides: Stride of each level to the one before, 1 first; their product is `patch_embed_size`.
        input_shape: (Z, Y, X) voxels of the images that the learned positions fit.
        embed_dim: Width of the tokens; 396, 792, 864 and 1056 are Primus-S, B, M and L.
        eva_depth: Number of blocks; 12, 12, 16 and 24.
        eva_numheads: Number of attention heads; 6, 12, 12 and 16.
        patch_embed_size: (Z, Y, X) voxels of a token, powers of 2.
        init_values: First scale of the blocks' branches.
        scale_attn_inner: Whether attention is normalised before it is projected.
        drop_path_rate: Probability at which the last block drops a branch; it rises from 0 with the blocks.
        deep_supervision: Return a list of the one output; nnU-Net switches `decoder.deep_supervision`.

    Raises:
        UserError: The numbers do not fit together, or the library's Primus cannot be imported.
    """

    single_output = True

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        strides: Sequence[Sequence[int]],
        input_shape: Sequence[int],
        embed_dim: int,
        eva_depth: int,
        eva_numheads: int,
        patch_embed_size: Sequence[int] = (8, 8, 8),
        init_values: float | None = 0.1,
        scale_attn_inner: bool = True,
        drop_path_rate: float = 0.0,
        deep_supervision: bool = False,
    ) -> None:
        nn.Module.__init__(self)
        _check_numbers(strides, input_shape, patch_embed_size, embed_dim, eva_numheads)
        built = _library()(
            input_channels, embed_dim, tuple(patch_embed_size), num_classes, eva_depth, eva_numheads,
            tuple(input_shape), init_values=init_values, scale_attn_inner=scale_attn_inner,
            drop_path_rate=drop_path_rate,
        )  # fmt: skip
        self.down_projection, self.up_projection, self.eva = built.down_projection, built.up_projection, built.eva
        self.register_buffer("mask_token", built.mask_token)  # of the library's names; nothing reads it
        self.decoder: Any = _Outputs(deep_supervision)
        z, y, x = (int(n) for n in patch_embed_size)
        self.token: Stride = (z, y, x)
        z, y, x = (size // step for size, step in zip(input_shape, self.token, strict=True))
        self.grid: Stride = (z, y, x)
        self.position_grids = {POSITIONS: self.grid}
        self.width, self.input_channels, self.rotated = embed_dim, input_channels, embed_dim // eva_numheads // 3 * 2

    @staticmethod
    def pyramid(input_channels: int, levels: Levels, **architecture: Any) -> PrimusPyramid:
        """Build `PrimusPyramid`, see `SegmentationNetwork.pyramid`."""
        return PrimusPyramid(Primus(input_channels, _ANY_NUMBER_OF_CLASSES, **architecture), levels)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return the logits of an image, as `SegmentationNetwork`."""
        grid = [size // step for size, step in zip(x.shape[2:], self.token, strict=True)]
        logits: Tensor = self.up_projection(as_map(self.tokens(x), grid))
        return [logits] if self.decoder.deep_supervision else logits

    def tokens(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """Normalised tokens (B, N, d) of an image, the last axis fastest.

        Args:
            x: (B, C, Z, Y, X), whole tokens on every axis.
            visible: (B, n) numbers of the tokens that alone pass through the blocks, in the result's order; None: all.
        """
        self.check_size(x.shape[2:])
        embedded = self.down_projection(x)
        learned, rotary = self._positions(tuple(embedded.shape[2:]))
        tokens = embedded.flatten(2).mT + learned
        if visible is not None:
            tokens = tokens.gather(1, visible[..., None].expand(-1, -1, tokens.shape[-1]))
            # each sample has its own: with an axis for the heads, without which the sample's axis would meet theirs
            rotary = F.embedding(visible, rotary)[:, None]
        for block in self.eva.blocks:
            tokens = block(tokens, rotary)
        normalised: Tensor = self.eva.norm(tokens)
        return normalised

    def check_size(self, size: Sequence[int]) -> None:
        """Raise UserError for an image (Z, Y, X) that is not made of whole tokens."""
        if any(n % step for n, step in zip(size, self.token, strict=True)):
            raise UserError(f"Primus's tokens have {format_size(self.token)} voxels, and the image has "
                            f"{format_size(size)}; set `patch_size` to multiples of that")  # fmt: skip

    def _positions(self, grid: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Learned positions (1, N, d) of a grid of tokens, and sines and cosines (N, r) that turn the heads."""
        learned = self.eva.pos_embed
        if grid == self.grid:
            return learned, self.eva.rope.get_embed()
        from timm.layers import build_rotary_pos_embed

        waves = build_rotary_pos_embed(list(grid), dim=self.rotated, in_pixels=False, device=learned.device)
        return resized_positions(learned, self.grid, grid), torch.cat(waves, -1)


class PrimusPyramid(FeaturePyramid):
    """The tokens of a `Primus`, its one level for encoder and decoder alike.

    The attribute `network` is that network, complete. The widths of its up-projection depend on the number of classes,
    so that no pretraining can fill it: it is neither trained nor run.

    Args:
        network: The Primus.
        levels: "encoder" or "decoder".
    """

    def __init__(self, network: Primus, levels: Levels) -> None:
        super().__init__([network.width], [network.token], network.input_channels)
        self.network, self.levels = network, levels
        self.divisor = network.token
        self.encodes_blocks = True
        self.position_grids = network.position_grids
        # the rotary positions are no part of a state dict
        self.unused = ("network.up_projection.", "network.mask_token", "network.eva.rope.")
        network.up_projection.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map a volume (B, C, Z, Y, X) of whole tokens to its one level."""
        return [as_map(self.network.tokens(x), self._grid(x))]

    def masked_levels(self, x: Tensor, mask: BlockMask) -> list[Tensor]:
        """As in every pyramid; only visible tokens pass through the blocks (MAE), the others are 0."""
        tokens, grid = self.network.tokens(x, mask.visible), self._grid(x)
        everything = tokens.new_zeros(len(x), prod(grid), tokens.shape[-1])
        places = mask.visible[..., None].expand_as(tokens)
        return [as_map(everything.scatter(1, places, tokens), grid)]

    def takes_single_voxels(self, batch_size: int) -> bool:
        """Patches may be a single token: layer normalisation needs no second one."""
        return True

    def _grid(self, x: Tensor) -> list[int]:
        return [size // step for size, step in zip(x.shape[2:], self.divisor, strict=True)]


class _Outputs(nn.Module):
    """Where nnU-Net switches deep supervision; it has no tensors, so that the library's names stay."""

    def __init__(self, deep_supervision: bool) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision


def _library() -> Any:
    try:
        with torch.device("cpu"):  # under `torch.device("meta")` the modules' own constants must be real
            from dynamic_network_architectures.architectures.primus import Primus as Library
    except ImportError as error:
        raise UserError(f'Primus is built by dynamic_network_architectures, which cannot be imported ({error}); type: '
                        f'pip install "dynamic_network_architectures>=0.4.1" timm einops') from error  # fmt: skip
    return Library


def _check_numbers(
    strides: Sequence[Sequence[int]], input_shape: Sequence[int], token: Sequence[int], width: int, heads: int
) -> None:
    if any(n & (n - 1) for n in check_three_axes(token)):
        raise UserError(f"Primus's tokens have powers of 2 as sides; set `patch_embed_size` to 8,8,8 instead of "
                        f"{format_size(token)}")  # fmt: skip
    if any(size % n or size < n for size, n in zip(check_three_axes(input_shape), token, strict=True)):
        raise UserError(f"Primus's tokens have {format_size(token)} voxels; set `input_shape` to multiples of that, "
                        f"not {format_size(input_shape)}")  # fmt: skip
    if [prod(axis) for axis in zip(*strides, strict=True)] != list(token) or any(n != 1 for n in strides[0]):
        raise UserError(f"the strides of Primus lead from 1 to {format_size(token)}, the size of a token; set "
                        f"`strides` in the plans' architecture to 1,1,1 and factors of that")  # fmt: skip
    if width % heads or width // heads % _ROTATED:
        raise UserError(f"a Primus of width {width} cannot have {heads} heads: each must have a multiple of {_ROTATED} "
                        f"numbers; set `embed_dim` to {_ROTATED * heads * max(width // heads // _ROTATED, 1)}"
                        )  # fmt: skip
