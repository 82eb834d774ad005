"""MONAI's UNETR as a feature pyramid, and as a segmentation network that plans can name."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.core.errors import UserError
from nnssl.networks.fpn_unet import SegmentationNetwork, check_strides
from nnssl.networks.monai_parts import import_monai
from nnssl.networks.pyramid import (
    BlockMask,
    FeaturePyramid,
    Levels,
    Stride,
    block_view,
    check_three_axes,
    format_size,
)

POSITIONS = "vit.patch_embedding.position_embeddings"
_PATCH = 16  # voxels per token along each axis
_BLOCKS = ("encoder1.", "encoder2.", "encoder3.", "encoder4.", "decoder5.", "decoder4.", "decoder3.", "decoder2.")


class ViTPyramid(FeaturePyramid):
    """The maps of a UNETR (Hatamizadeh et al., WACV 2022), under the names of MONAI's state dict.

    The encoder is the vision transformer; its one level is the last output, at stride 16. Decoder levels are the four
    stages of the decoder and the transformer's output, at strides 1, 2, 4, 8 and 16. The whole network is built; stages
    that the levels do not use are neither trained nor run.

    The position embeddings fit `image_size` and are interpolated for volumes of another size.

    Args:
        input_channels: Number of channels of the image.
        image_size: (Z, Y, X) voxels of the volumes that the position embeddings fit, multiples of 16.
        feature_size: Number of channels of the finest decoder level.
        hidden_size: Width of the tokens.
        mlp_dim: Of the transformer's feed-forward layers.
        num_heads: Number of attention heads.
        num_layers: Number of transformer blocks, a multiple of 4; the decoder reads the output of blocks
            num_layers / 4 * (1, 2, 3), counted from 0 as MONAI does.
        levels: "encoder" or "decoder".

    Raises:
        UserError: MONAI is missing, or the numbers do not fit together.
    """

    def __init__(
        self,
        input_channels: int,
        image_size: Sequence[int],
        feature_size: int = 16,
        hidden_size: int = 768,
        mlp_dim: int = 3072,
        num_heads: int = 12,
        num_layers: int = 12,
        levels: Levels = "encoder",
    ) -> None:
        _check_numbers(image_size, hidden_size, num_heads, num_layers)
        widths = [feature_size * factor for factor in (1, 2, 4, 8)]
        strides: list[Stride] = [(2**level,) * 3 for level in range(5)]
        shown = [4] if levels == "encoder" else range(5)
        super().__init__([[*widths, hidden_size][i] for i in shown], [strides[i] for i in shown], input_channels)
        self.levels = levels
        self.divisor = (_PATCH,) * 3
        self.encodes_blocks = levels == "encoder"
        z, y, x = (int(size) // _PATCH for size in image_size)
        self.grid = (z, y, x)
        self.position_grids = {POSITIONS: self.grid}
        self.skips = [num_layers // 4 * k for k in (1, 2, 3)]
        (transformer,) = import_monai("UNETR", "monai.networks.nets.vit", "ViT")
        basic, raising, joining = import_monai(
            "UNETR", "monai.networks.blocks", "UnetrBasicBlock", "UnetrPrUpBlock", "UnetrUpBlock"
        )
        self.vit = transformer(
            in_channels=input_channels, img_size=tuple(image_size), patch_size=(_PATCH,) * 3, hidden_size=hidden_size,
            mlp_dim=mlp_dim, num_layers=num_layers, num_heads=num_heads, proj_type="conv", classification=False,
        )  # fmt: skip
        for layer in self.vit.blocks:
            layer.attn.use_flash_attention = True  # MONAI's ViT does not pass it on
        block: dict[str, Any] = {"kernel_size": 3, "norm_name": "instance", "res_block": True}
        raised: dict[str, Any] = {**block, "stride": 1, "upsample_kernel_size": 2, "conv_block": True}
        self.encoder1 = basic(3, input_channels, widths[0], stride=1, **block)
        self.encoder2 = raising(3, hidden_size, widths[1], num_layer=2, **raised)
        self.encoder3 = raising(3, hidden_size, widths[2], num_layer=1, **raised)
        self.encoder4 = raising(3, hidden_size, widths[3], num_layer=0, **raised)
        self.decoder5 = joining(3, hidden_size, widths[3], upsample_kernel_size=2, **block)
        self.decoder4 = joining(3, widths[3], widths[2], upsample_kernel_size=2, **block)
        self.decoder3 = joining(3, widths[2], widths[1], upsample_kernel_size=2, **block)
        self.decoder2 = joining(3, widths[1], widths[0], upsample_kernel_size=2, **block)
        self.unused = (*_cross_attention(self.vit), *(_BLOCKS if levels == "encoder" else ()))
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(not name.startswith(self.unused))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map a volume (B, C, Z, Y, X), sides divisible by 16, to its levels, finest first."""
        grid = [size // _PATCH for size in x.shape[2:]]
        tokens, between = self._run_blocks(self._embed(x))
        if self.levels == "encoder":
            return [as_map(tokens, grid)]
        skip2, skip3, skip4 = (as_map(hidden, grid) for hidden in between)
        coarsest = as_map(tokens, grid)
        eighth = self.decoder5(coarsest, self.encoder4(skip4))
        quarter = self.decoder4(eighth, self.encoder3(skip3))
        half = self.decoder3(quarter, self.encoder2(skip2))
        return [self.decoder2(half, self.encoder1(x)), half, quarter, eighth, coarsest]

    def masked_levels(self, x: Tensor, mask: BlockMask) -> list[Tensor]:
        """As in every pyramid; only visible tokens pass through the transformer (MAE), the others are 0."""
        if self.levels != "encoder":
            return super().masked_levels(x, mask)
        grid = [size // _PATCH for size in x.shape[2:]]
        tokens, _ = self._run_blocks(self._embed(x, mask.visible))
        everywhere = tokens.new_zeros(len(x), prod(grid), tokens.shape[-1])
        return [as_map(everywhere.scatter(1, _rows(mask.visible, tokens.shape[-1]), tokens), grid)]

    def _embed(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """Tokens (B, N, d) of the patches, or of the n visible ones (B, n, d), with their positions."""
        embedding: Any = self.vit.patch_embedding
        convolution: Any = embedding.patch_embeddings
        patches = block_view(x, (_PATCH,) * 3)
        grid = tuple(patches.shape[1:4])
        positions = embedding.position_embeddings
        if grid != self.grid:
            positions = resized_positions(positions, self.grid, grid)
        patches = patches.flatten(4).flatten(1, 3)
        if visible is not None:
            patches = patches.gather(1, _rows(visible, patches.shape[-1]))
            positions = positions.expand(len(x), -1, -1).gather(1, _rows(visible, positions.shape[-1]))
        # a matrix product, as kernel and stride are one: cuDNN has no fast kernel for such a convolution
        tokens: Tensor = F.linear(patches, convolution.weight.flatten(1), convolution.bias)
        return tokens + positions

    def _run_blocks(self, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The transformer's output, and the outputs of the inner blocks that the decoder reads."""
        between = []
        blocks: Any = self.vit.blocks
        for number, block in enumerate(blocks):
            tokens = block(tokens)
            if number in self.skips:
                between.append(tokens)
        normalised: Tensor = self.vit.norm(tokens)  # type: ignore[operator]
        return normalised, between


class UNETR(SegmentationNetwork):
    """`ViTPyramid` with MONAI's single segmentation layer.

    Plans name it as "nnssl.networks.vit.UNETR", with their patch size as `image_size`. It has one output, see
    `nnssl.networks.swin.SwinUNETR`.
    """

    single_output = True

    @staticmethod
    def pyramid(input_channels: int, levels: Levels, strides: Sequence[Sequence[int]], **arguments: Any) -> ViTPyramid:
        """Build `ViTPyramid`, see `SegmentationNetwork.pyramid`."""
        check_strides(strides, 5)
        return ViTPyramid(input_channels, levels=levels, **arguments)


def resized_positions(positions: Tensor, grid: Sequence[int], new_grid: Sequence[int]) -> Tensor:
    """Interpolate the position embeddings of a grid of tokens trilinearly to another grid over the same field.

    Args:
        positions: (1, N, d), the grid's last axis fastest.
        grid: Tokens along each axis, N of them.
        new_grid: Tokens along each axis of the result.

    Returns:
        (1, N', d).
    """
    volume = positions.mT.unflatten(2, tuple(grid))
    resized = F.interpolate(volume, size=tuple(new_grid), mode="trilinear", align_corners=False)
    return resized.flatten(2).mT


def _check_numbers(image_size: Sequence[int], hidden_size: int, num_heads: int, num_layers: int) -> None:
    if any(size % _PATCH or size < _PATCH for size in check_three_axes(image_size)):
        raise UserError(f"UNETR's tokens have 16 voxels; set `image_size` to multiples of 16, not "
                        f"{format_size(image_size)}")  # fmt: skip
    if hidden_size % num_heads or num_layers < 4 or num_layers % 4:
        raise UserError(f"a UNETR of width {hidden_size} cannot have {num_heads} heads and {num_layers} layers; choose "
                        f"heads that divide the width, and a multiple of 4 for the layers")  # fmt: skip


def _cross_attention(transformer: nn.Module) -> list[str]:
    """Prefixes of the parameters that MONAI's blocks have for a second input and never use here."""
    kinds = ("cross_attn", "norm_cross_attn")
    return [f"vit.{name}." for name, _ in transformer.named_modules() if name.rsplit(".", 1)[-1] in kinds]


def _rows(numbers: Tensor, width: int) -> Tensor:
    """Index (B, n, width) of the rows (B, n) for `gather` and `scatter`."""
    return numbers[..., None].expand(-1, -1, width)


def as_map(tokens: Tensor, grid: Sequence[int]) -> Tensor:
    """Tokens (B, N, d) as a map (B, d, *grid)."""
    return tokens.mT.unflatten(2, tuple(grid)).contiguous()
