"""MONAI's SwinUNETR as a feature pyramid, and as a segmentation network that plans can name.

MONAI is an extra: it is imported where such a network is built, never before.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nnssl.core.errors import UserError
from nnssl.networks.fpn_unet import SegmentationLayers
from nnssl.networks.monai_parts import import_monai
from nnssl.networks.pyramid import BlockMask, FeaturePyramid, Stride, check_three_axes, format_size, spread

STRIDES = [[1, 1, 1]] + [[2, 2, 2]] * 5  # of each level to the one before, as plans state them
_TOTAL_STRIDE = 32
_DECODER = ("decoder5.", "decoder4.", "decoder3.", "decoder2.", "decoder1.")
_OUTPUT, _MONAI_OUTPUT = "decoder.seg_layers.0.", "out.conv.conv."


class SwinPyramid(FeaturePyramid):
    """The maps of a SwinUNETR v2 (Hatamizadeh et al. 2022, He et al. 2023), under the names of MONAI's state dict.

    Encoder levels are the outputs of its five convolution blocks, at strides 1, 2, 4, 8 and 32 (VoCo; methods.md 2.2):
    `encoder1` reads the image, the others the Swin transformer's stages. Decoder levels are the five stages of the
    decoder and the bottleneck, at strides 1, 2, 4, 8, 16 and 32. As in the other pyramids the whole network is there,
    and what the levels do not use has no gradient and is not run.

    Args:
        input_channels: Number of channels of the image.
        feature_size: Number of channels of the finest level; stage i of the transformer has feature_size * 2^i.
        depths: Number of transformer blocks of each of the four stages.
        num_heads: Number of attention heads of each stage.
        window_size: Side of the attention windows, in cells.
        use_checkpoint: Compute the transformer's activations again in the backward pass, which saves memory.
        levels: "encoder" or "decoder".

    Raises:
        UserError: MONAI is missing, or the numbers do not fit together.
    """

    def __init__(
        self,
        input_channels: int = 1,
        feature_size: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        use_checkpoint: bool = False,
        levels: Literal["encoder", "decoder"] = "encoder",
    ) -> None:
        widths = [feature_size * factor for factor in (1, 1, 2, 4, 8, 16)]
        _check_widths(feature_size, depths, num_heads)
        shown = [0, 1, 2, 3, 5] if levels == "encoder" else range(6)
        strides: list[Stride] = [(2**level,) * 3 for level in shown]
        super().__init__([widths[level] for level in shown], strides, input_channels)
        self.levels = levels
        self.divisor = (_TOTAL_STRIDE,) * 3
        self.mask_width = feature_size
        (transformer,) = import_monai("SwinUNETR", "monai.networks.nets.swin_unetr", "SwinTransformer")
        basic, raising = import_monai("SwinUNETR", "monai.networks.blocks", "UnetrBasicBlock", "UnetrUpBlock")
        with _LinspaceOnCpu():
            self.swinViT = transformer(
                in_chans=input_channels,
                embed_dim=feature_size,
                window_size=(window_size,) * 3,
                patch_size=(2, 2, 2),
                depths=tuple(depths),
                num_heads=tuple(num_heads),
                use_checkpoint=use_checkpoint,
                downsample="merging",
                use_v2=True,
            )
        self.encoder1 = _block(basic, input_channels, widths[0])
        self.encoder2 = _block(basic, widths[1], widths[1])
        self.encoder3 = _block(basic, widths[2], widths[2])
        self.encoder4 = _block(basic, widths[3], widths[3])
        self.encoder10 = _block(basic, widths[5], widths[5])
        self.decoder5 = _block(raising, widths[5], widths[4], upsample_kernel_size=2)
        self.decoder4 = _block(raising, widths[4], widths[3], upsample_kernel_size=2)
        self.decoder3 = _block(raising, widths[3], widths[2], upsample_kernel_size=2)
        self.decoder2 = _block(raising, widths[2], widths[1], upsample_kernel_size=2)
        self.decoder1 = _block(raising, widths[1], widths[0], upsample_kernel_size=2)
        if levels == "encoder":
            self.unused = _DECODER
            for stage in self._decoder_stages():
                stage.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map a volume (B, C, Z, Y, X), sides divisible by 32, to its levels, finest first."""
        stages = self.swinViT(x)  # strides 2, 4, 8, 16, 32, each normalised over its channels
        maps = [
            self.encoder1(x),
            self.encoder2(stages[0]),
            self.encoder3(stages[1]),
            self.encoder4(stages[2]),
            self.encoder10(stages[4]),
        ]
        return maps if self.levels == "encoder" else self._decode(maps, stages[3])

    def masked_levels(self, x: Tensor, mask: BlockMask, token: Tensor | None) -> list[Tensor]:
        """As in every pyramid; the transformer's own tokens of hidden blocks are replaced by the given one (SimMIM)."""
        if token is None:
            return super().masked_levels(x, mask, token)

        def replace(embedding: nn.Module, arguments: Any, cells: Tensor) -> Tensor:
            hide = spread(mask.hidden, cells.shape[2:])
            return torch.where(hide, token.to(cells.dtype).view(-1, 1, 1, 1), cells)

        handle = self.swinViT.patch_embed.register_forward_hook(replace)
        try:
            return super().masked_levels(x, mask, token)
        finally:
            handle.remove()

    def _decode(self, maps: list[Tensor], coarsest_skip: Tensor) -> list[Tensor]:
        *skips, x = maps
        pyramid = [x]
        for stage, skip in zip(self._decoder_stages(), [coarsest_skip, *reversed(skips)], strict=True):
            x = stage(x, skip)
            pyramid.append(x)
        return pyramid[::-1]

    def _decoder_stages(self) -> list[nn.Module]:
        return [self.decoder5, self.decoder4, self.decoder3, self.decoder2, self.decoder1]

    def check_patch(self, patch_size: Sequence[int], batch_size: int = 2) -> None:
        """Make sure that every stage halves its map evenly and that instance normalisation sees two values.

        Raises:
            UserError: The patch is not divisible by 32, or leaves one voxel at the coarsest level.
        """
        patch = check_three_axes(patch_size)
        above = [-(-size // _TOTAL_STRIDE) * _TOTAL_STRIDE for size in patch]
        if prod(above) == _TOTAL_STRIDE**3:
            above[2] *= 2
        if list(patch) != above:
            raise UserError(
                f"The patch size {format_size(patch)} does not suit SwinUNETR, which halves every axis five times and "
                f"needs two voxels at the end: use multiples of 32, such as {format_size(above)} or 64,64,64."
            )


class SwinUNETR(nn.Module):
    """`SwinPyramid` with MONAI's single segmentation layer, built by nnU-Net from plans.

    `network_class_name` is "nnssl.networks.swin.SwinUNETR". The pretrained part is `backbone`; `decoder.seg_layers` is
    what `-pretrained_weights` skips. The network has one output: with deep supervision it is a list of that one, and
    nnU-Net's loss then is 8/15 of the plain one (the weight of the finest of its five scales).

    Args:
        input_channels: Number of channels of the image.
        num_classes: Number of output channels.
        strides: Stride of each level to the one before; nnU-Net reads it in the plans to size its targets.
        feature_size, depths, num_heads, window_size, use_checkpoint: see `SwinPyramid`.
        deep_supervision: Return a list, as nnU-Net's trainers expect it.

    Raises:
        UserError: MONAI is missing, or the numbers do not fit together.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        strides: Sequence[Sequence[int]],
        feature_size: int = 48,
        depths: Sequence[int] = (2, 2, 2, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        use_checkpoint: bool = False,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        check_swin_strides(strides)
        self.backbone = SwinPyramid(
            input_channels, feature_size, depths, num_heads, window_size, use_checkpoint, "decoder"
        )
        self.decoder = SegmentationLayers([feature_size], num_classes, deep_supervision)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Map an image (B, C, Z, Y, X), sides divisible by 32, to logits (B, num_classes, Z, Y, X), or a list of it."""
        return self.decoder(self.backbone(x)[:1])


def monai_name(name: str) -> str:
    """What MONAI's SwinUNETR calls an entry of the state dict of the `SwinUNETR` here.

    The entries of a VoCo student have the same names without `backbone.`: 145 of the 167 (methods.md 2.5).
    """
    if name.startswith(_OUTPUT):
        return _MONAI_OUTPUT + name.removeprefix(_OUTPUT)
    return name.removeprefix("backbone.")


def check_swin_strides(strides: Sequence[Sequence[int]]) -> None:
    """Make sure that the strides of the plans are those of SwinUNETR: 1, then five times 2 on every axis.

    Raises:
        UserError: They are not.
    """
    if [list(stride) for stride in strides] != STRIDES:
        raise UserError(
            f"SwinUNETR halves every axis five times: set `strides` in the architecture of the plans to {STRIDES}."
        )


def _check_widths(feature_size: int, depths: Sequence[int], num_heads: Sequence[int]) -> None:
    if len(depths) != 4 or len(num_heads) != 4:
        raise UserError("SwinUNETR has four stages: give four numbers for `depths` and for `num_heads`.")
    if any(feature_size * 2**i % heads for i, heads in enumerate(num_heads)):
        raise UserError(
            f"A feature_size of {feature_size} cannot be divided among {list(num_heads)} attention heads: use a "
            f"multiple of 12 with 3, 6, 12 and 24 heads."
        )


def _block(kind: Any, in_channels: int, out_channels: int, **options: Any) -> nn.Module:
    sizes = {"kernel_size": 3} if options else {"kernel_size": 3, "stride": 1}
    block: nn.Module = kind(3, in_channels, out_channels, norm_name="instance", res_block=True, **sizes, **options)
    return block


class _LinspaceOnCpu(TorchFunctionMode):
    """MONAI reads the rates of its stochastic depth from a tensor, which the device "meta" would not allow."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        changed = {"device": "cpu"} if func is torch.linspace else {}
        return func(*args, **{**(kwargs or {}), **changed})
