"""The two segmentation heads of vox2vec's probing experiments, on any feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.networks.fpn_unet import ResidualBlock, add_upsampled
from nnssl.networks.pyramid import Stride, cropped


class SegmentationHead(nn.Module):
    """Base of both heads, which go from the coarsest level to the finest.

    Args:
        channels: Number of channels of each level, finest first.
        strides: Cumulative stride of each level.
        num_classes: Number of output channels.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[Stride], num_classes: int) -> None:
        super().__init__()
        self.channels, self.num_classes = tuple(channels), num_classes
        self.factors: list[Stride] = []  # of each level to the next coarser one
        for fine, coarse in pairwise(strides):
            z, y, x = (c // f for f, c in zip(fine, coarse, strict=True))
            self.factors.append((z, y, x))

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        """Map the pyramid, finest first, to logits (B, num_classes, Z, Y, X) at the size of the finest level."""
        raise NotImplementedError


class LinearHead(SegmentationHead):
    """One linear classifier on the representation of each voxel, applied level by level (methods.md 1.5).

    The sum over levels of upsampled 1x1x1 convolutions equals a linear layer on the concatenated channels of the cells
    that contain the voxel, but never builds these at full resolution.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[Stride], num_classes: int) -> None:
        super().__init__(channels, strides, num_classes)
        self.layers = nn.ModuleList(
            nn.Conv3d(width, num_classes, 1, bias=level == 0) for level, width in enumerate(channels)
        )

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        """See `SegmentationHead`."""
        logits = self.layers[-1](pyramid[-1])
        for layer, feature_map, factor in reversed(
            list(zip(self.layers[:-1], pyramid[:-1], self.factors, strict=True))
        ):
            logits = add_upsampled(layer(feature_map), logits, factor)
        return logits


class NonLinearHead(SegmentationHead):
    """A U-Net decoder all of whose kernels are 1x1x1 (methods.md 1.5)."""

    def __init__(self, channels: Sequence[int], strides: Sequence[Stride], num_classes: int) -> None:
        super().__init__(channels, strides, num_classes)
        finer = list(reversed(channels[:-1]))
        self.bottom_block = ResidualBlock(channels[-1], 1)
        self.up_blocks = nn.ModuleList(
            nn.Sequential(nn.Conv3d(coarse, fine, 1))
            for coarse, fine in zip([channels[-1], *finer], finer, strict=False)
        )
        self.skip_blocks = nn.ModuleList(nn.Conv3d(c, c, 1) for c in finer)
        self.right_blocks = nn.ModuleList(ResidualBlock(c, 1) for c in finer)
        self.final_block = nn.Conv3d(channels[0], num_classes, 1)

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        """See `SegmentationHead`."""
        x = self.bottom_block(pyramid[-1])
        for up, skip, right, feature_map, factor in zip(
            self.up_blocks,
            self.skip_blocks,
            self.right_blocks,
            reversed(pyramid[:-1]),
            reversed(self.factors),
            strict=True,
        ):
            x = right(add_upsampled(skip(feature_map), up(x), factor))
        return self.final_block(x)


def upsampled_to(logits: Tensor, stride: Stride, size: Sequence[int]) -> Tensor:
    """Repeat the cells of the finest level's logits by its stride, then crop to the size (Z, Y, X) of the image."""
    if stride != (1, 1, 1):
        logits = F.interpolate(logits, scale_factor=tuple(float(s) for s in stride), mode="nearest")
    return cropped(logits, size)
