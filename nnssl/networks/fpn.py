"""The feature pyramid network of vox2vec: a pre-activation residual U-Net all of whose levels are returned."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.errors import UserError
from nnssl.networks.pyramid import FeaturePyramid, Stride, check_three_axes, format_size, to_channels_last

# From here on the weights of a convolution outweigh its map and the default layout is the faster one; below it
# channels-last is (forward and backward of a 3x3x3 convolution on a CPU).
_MANY_CHANNELS = 256


class FPN3d(FeaturePyramid):
    """Feature pyramid network (vox2vec; methods.md 1.2), with the names of the authors' state dict.

    Level l has base_channels * 2^l channels at stride 2^l. Any size is accepted: pooling rounds up and an upsampled map
    is cropped to its skip connection. The maps with few channels are kept in `torch.channels_last_3d` inside, whatever
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
        levels: Literal["encoder", "decoder"] = "decoder",
    ) -> None:
        channels = pyramid_channels(base_channels, num_scales)
        super().__init__(channels, [(2**level,) * 3 for level in range(num_scales)], in_channels)
        self.levels = levels
        finer, coarser = channels[:-1], channels[1:]
        self.first_conv = nn.Conv3d(in_channels, base_channels, 3, padding=1)
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
        """Make sure that batch normalisation sees more than one value per channel; every size is fine otherwise.

        Raises:
            UserError: The patch is one voxel, or a single patch leaves one voxel at the coarsest level.
        """
        patch = check_three_axes(patch_size)
        coarsest = [-(-size // stride) for size, stride in zip(patch, self.strides[-1], strict=True)]
        if prod(patch) > 1 and batch_size * prod(coarsest) > 1:
            return
        nearest = (*patch[:2], self.strides[-1][2] + 1)
        raise UserError(
            f"The patch size {format_size(patch)} with a batch of {batch_size} leaves one voxel at the coarsest level, "
            f"and batch normalisation needs two: use at least {format_size(nearest)}, or a larger batch."
        )


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
