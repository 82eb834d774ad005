"""The U-Net of PiMPiC as a feature pyramid: the encoder that is pretrained, and the decoder of its fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.networks.fpn import pyramid_channels
from nnssl.networks.instance_norm import instance_norm
from nnssl.networks.pyramid import FeaturePyramid, Stride, check_halved, to_channels_last

# From here on the weights of a convolution outweigh its map and the default layout is the faster one on a CPU too.
_MANY_CHANNELS = 256


class Pimpic3d(FeaturePyramid):
    """PiMPiC's network (methods.md 3.2 and 3.5); `encoder` has the names of the authors' state dict.

    Encoder level l has base_channels * 2^l channels at stride 2^l. The decoder begins at stride 2^num_scales with as
    many channels as the coarsest encoder level, and its finest level has base_channels as the second finest has.
    Convolutions have a bias and instance normalisation no weights, as published.

    Args:
        in_channels: Number of channels of the input.
        base_channels: Number of channels of the finest level.
        num_scales: Number of levels of the encoder.
        levels: "encoder" for its maps, strides 1 to 2^(num_scales - 1); "decoder" for the decoder's at the same strides
            and the bottleneck at 2^num_scales.
    """

    def __init__(
        self,
        in_channels: int = 1,
        base_channels: int = 32,
        num_scales: int = 5,
        levels: Literal["encoder", "decoder"] = "encoder",
    ) -> None:
        of_encoder = pyramid_channels(base_channels, num_scales)
        of_decoder = [base_channels, *of_encoder[:-1]]
        shown = of_encoder if levels == "encoder" else [*of_decoder, of_encoder[-1]]
        strides: list[Stride] = [(2**level,) * 3 for level in range(len(shown))]
        super().__init__(shown, strides, in_channels)
        self.levels = levels
        self.divisor = strides[-1]
        self.encoder = nn.ModuleDict(
            {
                f"encoder{level + 1}": EncoderStage(before, channels)
                for level, (before, channels) in enumerate(zip([in_channels, *of_encoder], of_encoder, strict=False))
            }
        )
        self.bottleneck = nn.Conv3d(of_encoder[-1], of_encoder[-1], 3, padding=1)
        below = [*of_decoder[1:], of_encoder[-1]]
        self.decoder = nn.ModuleList(
            ConvBlock(coarse + skip, channels)
            for coarse, skip, channels in reversed(list(zip(below, of_encoder, of_decoder, strict=True)))
        )
        if levels == "decoder":
            self.decoding = ("decoder",)
        else:
            self.unused = ("bottleneck.", "decoder.")
            for unused in (self.bottleneck, self.decoder):
                unused.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map a volume (B, in_channels, Z, Y, X), sides divisible by `divisor`, to its levels, finest first."""
        maps: list[Tensor] = []
        for stage in self.encoder.values():
            maps.append(stage(F.max_pool3d(maps[-1], 2) if maps else x))
        return maps if self.levels == "encoder" else self._decode(maps)

    def _decode(self, maps: list[Tensor]) -> list[Tensor]:
        x = _activated(self.bottleneck(F.max_pool3d(maps[-1], 2)))
        pyramid = [x]
        for block, skip in list(zip(self.decoder, reversed(maps), strict=True))[: len(maps) - self.finest]:
            upsampled = F.interpolate(x, scale_factor=2.0, mode="trilinear", align_corners=True)
            x = block(torch.cat([upsampled, skip], dim=1))
            pyramid.append(x)
        return [x.new_empty(0)] * self.finest + pyramid[::-1]

    def check_patch(self, patch_size: Sequence[int], batch_size: int = 2) -> None:
        """Make sure that every stage halves its map evenly and that instance normalisation sees two voxels.

        Raises:
            UserError: The patch is not divisible by the total stride, or leaves one voxel at the coarsest level.
        """
        check_halved(patch_size, self.divisor, "PiMPiC's")


class ConvBlock(nn.Module):
    """Three times convolution, instance normalisation, ReLU; the first and the third activation are added.

    Maps (B, in_channels, Z, Y, X) to (B, channels, Z, Y, X).
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, channels, 3, padding=1)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.conv3 = nn.Conv3d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        first = _activated(self.conv(_in_fast_layout(x, self.conv.out_channels)))
        return first + _activated(self.conv3(_activated(self.conv2(first))))


class EncoderStage(nn.Module):
    """A `ConvBlock`, under the name that it has in the authors' state dict."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv_block = ConvBlock(in_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        return self.conv_block(x)


def _activated(x: Tensor) -> Tensor:
    # In place: the backward pass of the normalisation needs its input, not its output.
    return F.relu_(instance_norm(x))


def _in_fast_layout(x: Tensor, channels: int) -> Tensor:
    """The input of convolutions to so many channels, in the layout in which they are fastest."""
    channels_last = x.device.type == "cpu" and channels < _MANY_CHANNELS
    return to_channels_last(x) if channels_last else x.contiguous()
