"""vox2vec's network as a segmentation network that plans can name: stock nnU-Net trains it and predicts with it."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.core.errors import UserError
from nnssl.networks.layout import to_channels_last
from nnssl.networks.pyramid import FeaturePyramid, Levels, Stride, check_three_axes, format_size

# From this number on the weights of a convolution outweigh its map, and the default layout is faster than channels-last
# (forward and backward pass of a 3x3x3 convolution on a CPU).
_MANY_CHANNELS = 256


class FPN3d(FeaturePyramid):
    """Feature pyramid network (vox2vec; methods.md 1.2), with the names of the authors' state dict.

    Level l has base_channels * 2^l channels at stride 2^l. Any size is accepted: pooling rounds up, and upsampled
    maps are cropped to their skip connections. Maps with few channels are kept in `torch.channels_last_3d`, whatever
    the layout of the input.

    Args:
        in_channels: Number of channels of the input.
        base_channels: Number of channels of the finest level.
        num_scales: Number of levels.
        levels: "decoder" for the published network; "encoder" for the maps of the left path and the bottom block (the
            right path then has no gradient and is not run).
    """

    def __init__(
        self,
        in_channels: int = 1,
        base_channels: int = 16,
        num_scales: int = 6,
        levels: Levels = "decoder",
    ) -> None:
        channels = pyramid_channels(base_channels, num_scales)
        super().__init__(channels, [(2**level,) * 3 for level in range(num_scales)], in_channels)
        self.levels = levels
        self.convolutional = True
        finer, coarser = channels[:-1], channels[1:]
        # in the layout of its gradient, which DistributedDataParallel asks of its buckets
        self.first_conv = nn.Conv3d(in_channels, base_channels, 3, padding=1).to(memory_format=torch.channels_last_3d)
        self.left_blocks = nn.ModuleList(ResidualStage(c) for c in finer)
        self.down_blocks = nn.ModuleList(
            nn.Sequential(nn.MaxPool3d(2, ceil_mode=True), nn.Conv3d(fine, coarse, 1))
            for fine, coarse in zip(finer, coarser, strict=True)
        )
        self.bottom_block = ResidualStage(channels[-1])
        self.up_blocks = nn.ModuleList(_up_block(c) for c in reversed(finer))
        self.skip_blocks = nn.ModuleList(nn.Conv3d(c, c, 1) for c in reversed(finer))
        self.right_blocks = nn.ModuleList(ResidualStage(c) for c in reversed(finer))
        if levels == "decoder":
            self.decoding = ("up_blocks", "skip_blocks", "right_blocks")
        else:
            self.unused = ("up_blocks.", "skip_blocks.", "right_blocks.")
            for unused in (self.up_blocks, self.skip_blocks, self.right_blocks):
                unused.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map a volume (B, in_channels, Z, Y, X) to maps (B, 16 * 2^l, ceil(Z / 2^l), ...), finest first."""
        x = _in_own_layout(self.first_conv(to_channels_last(x)))
        maps = []
        for left, down in zip(self.left_blocks, self.down_blocks, strict=True):
            maps.append(left(x))
            x = _in_own_layout(down(maps[-1]))
        maps.append(self.bottom_block(x))
        return maps if self.levels == "encoder" else self._decode(maps)

    def _decode(self, maps: list[Tensor]) -> list[Tensor]:
        x = maps[-1]
        pyramid = [x]
        stages = zip(self.up_blocks, self.skip_blocks, self.right_blocks, reversed(maps[:-1]), strict=True)
        for up, skip, right, fine in list(stages)[: len(maps) - 1 - self.finest]:
            x = right(add_upsampled(_in_own_layout(skip(fine)), _in_own_layout(up(x))))
            pyramid.append(x)
        return [x.new_empty(0)] * self.finest + pyramid[::-1]

    def check_patch(self, patch_size: Sequence[int], batch_size: int = 2) -> None:
        """As in every pyramid; any size is fine where batch normalisation sees more than one value per channel."""
        patch = check_three_axes(patch_size)
        coarsest = [-(-size // stride) for size, stride in zip(patch, self.strides[-1], strict=True)]
        if prod(patch) > 1 and batch_size * prod(coarsest) > 1:
            return
        nearest = (*patch[:2], self.strides[-1][2] + 1)
        raise UserError(f"the patch size {format_size(patch)} with a batch of {batch_size} leaves one voxel at the "
                        f"coarsest level, and batch normalisation needs two; use at least {format_size(nearest)}, or a "
                        f"larger batch")  # fmt: skip


class ResidualBlock(nn.Module):
    """Twice BN, ReLU and convolution, plus the input (methods.md 1.2). The shape (B, channels, Z, Y, X) is kept."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            convolution = nn.Conv3d(channels, channels, kernel_size, padding=kernel_size // 2)
            # In place: the backward pass of batch normalisation needs its input, not its output.
            layers += [nn.BatchNorm3d(channels), nn.ReLU(inplace=True), convolution]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return x + layers(x)."""
        return self.layers(x).add_(x)


class ResidualStage(nn.Module):
    """Two residual blocks with 3x3x3 kernels. The shape (B, channels, Z, Y, X) is kept."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(ResidualBlock(channels, 3), ResidualBlock(channels, 3))
        self.to(memory_format=_layout(channels))  # the layout of the maps: a weight gradient needs no conversion

    def forward(self, x: Tensor) -> Tensor:
        """Run both blocks."""
        return self.layers(x)


def pyramid_channels(base_channels: int, num_scales: int) -> list[int]:
    """Return the number of channels of each level, finest first: they double from level to level."""
    return [base_channels * 2**level for level in range(num_scales)]


def add_upsampled(fine: Tensor, coarse: Tensor, factor: Stride = (2, 2, 2)) -> Tensor:
    """Add the coarse map (B, C, ceil(Z / factor), ...) in place to the fine one (B, C, Z, Y, X), its cells repeated."""
    upsampled = F.interpolate(coarse, scale_factor=tuple(float(f) for f in factor), mode="nearest")
    if upsampled.shape != fine.shape:
        size_z, size_y, size_x = fine.shape[2:]
        upsampled = upsampled[:, :, :size_z, :size_y, :size_x]
    return fine.add_(upsampled)


def _up_block(channels: int) -> nn.Sequential:
    """Halve the channels (the sequence keeps the authors' names: `up_blocks.0.0.weight`)."""
    return nn.Sequential(nn.Conv3d(2 * channels, channels, 1))


def _layout(channels: int) -> torch.memory_format:
    return torch.channels_last_3d if channels < _MANY_CHANNELS else torch.contiguous_format


def _in_own_layout(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=_layout(x.shape[1]))


class SegmentationLayers(nn.Module):
    """Logits from feature maps; ordered and named as the decoder of nnU-Net's networks.

    Args:
        channels: Number of channels of each level, finest first.
        num_classes: Number of output channels.
        deep_supervision: Return the logits of all levels; nnU-Net switches this attribute.
        kernel_size: Of the layers, odd.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, deep_supervision: bool, kernel_size: int = 1) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.seg_layers = nn.ModuleList(
            nn.Conv3d(c, num_classes, kernel_size, padding=kernel_size // 2) for c in reversed(channels)
        )

    def forward(self, pyramid: list[Tensor]) -> Tensor | list[Tensor]:
        """Return the logits of the finest level, or with deep supervision of every level, finest first."""
        finest_first = reversed(self.seg_layers)
        if not self.deep_supervision:
            return next(finest_first)(pyramid[0])
        return [layer(feature_map) for layer, feature_map in zip(finest_first, pyramid, strict=True)]


def check_strides(strides: Sequence[Sequence[int]], num_scales: int) -> None:
    """Make sure that the strides of the plans are 1, then 2 on every axis, one for each of the levels.

    Raises:
        UserError: They are not.
    """
    expected = [[1, 1, 1]] + [[2, 2, 2]] * (num_scales - 1)
    if [list(stride) for stride in strides] != expected:
        raise UserError(f"this network halves every axis at each of its {num_scales} levels but the first; set "
                        f"`strides` in the plans' architecture to {expected}")  # fmt: skip


class SegmentationNetwork(nn.Module):
    """A pyramid with segmentation layers: what nnU-Net builds where plans name a network of this package.

    The pretrained part is `backbone`; `decoder.seg_layers` is what `-pretrained_weights` skips. It maps an image
    (B, input_channels, Z, Y, X) to logits (B, num_classes, Z, Y, X), or to a list of them with deep supervision. The
    sides must be multiples of the pyramid's `divisor`.

    Args:
        input_channels: Number of channels of the image.
        num_classes: Number of output channels.
        deep_supervision: Return the logits of every segmentation layer, finest first, as a list.
        architecture: The other `arch_kwargs` of the plans, passed to `pyramid`.

    Raises:
        UserError: See `pyramid`.
    """

    kernel_size: ClassVar[int] = 1  # of the segmentation layers
    single_output: ClassVar[bool] = False  # one layer on the finest level; else one on each but the coarsest

    def __init__(
        self, input_channels: int, num_classes: int, deep_supervision: bool = False, **architecture: Any
    ) -> None:
        super().__init__()
        self.backbone = self.pyramid(input_channels, "decoder", **architecture)
        channels = self.backbone.channels[:1] if self.single_output else self.backbone.channels[:-1]
        self.decoder = SegmentationLayers(channels, num_classes, deep_supervision, self.kernel_size)

    @staticmethod
    def pyramid(*arguments: Any, **architecture: Any) -> FeaturePyramid:
        """Build the backbone from the number of input channels, the levels to show, and the `arch_kwargs` of plans.

        nnU-Net reads one of them, `strides`, in the plans to size its targets: the stride of each level to the one
        before.

        Raises:
            UserError: `strides` are not those of the network, or other arguments do not fit together.
        """
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Return the logits of an image, see above."""
        return self.decoder(self.backbone(x)[: len(self.decoder.seg_layers)])


class FPN3dUNet(SegmentationNetwork):
    """`FPN3d` with a 1x1x1 segmentation layer per level above the bottleneck.

    Plans name it as "nnssl.networks.fpn_unet.FPN3dUNet". Any size is accepted; deep supervision needs a patch that is
    divisible by 2^(num_scales - 2), because nnU-Net rounds the sizes of its targets and the network rounds up.
    """

    @staticmethod
    def pyramid(
        input_channels: int, levels: Levels, strides: Sequence[Sequence[int]], base_channels: int, num_scales: int
    ) -> FPN3d:
        """Build `FPN3d`, see `SegmentationNetwork.pyramid`."""
        check_strides(strides, num_scales)
        return FPN3d(input_channels, base_channels, num_scales, levels)
