"""PiMPiC's network as a segmentation network that plans can name: stock nnU-Net trains it and predicts with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.networks.fpn_unet import SegmentationNetwork, check_strides, pyramid_channels
from nnssl.networks.layout import to_channels_last
from nnssl.networks.pyramid import FeaturePyramid, Levels, Stride

_EPS = 1e-5  # as in nn.InstanceNorm3d


def instance_norm(x: Tensor) -> Tensor:
    """Normalise every channel of every volume (B, C, Z, Y, X), without weights, as nn.InstanceNorm3d does.

    torch's own function copies a channels-last map to the default layout, and the next convolution copies it back. On a
    CPU such a map goes volume by volume through torch's batch normalisation, which keeps the layout. Forward and
    backward pass then take a fifth of the time that torch's function takes on a map in the default layout.

    Raises:
        ValueError: there is only one voxel.
    """
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if keeps_layout(x) and x.dtype in (torch.float32, torch.float64) and x[0, 0].numel() > 1 and not tracing:
        return _VolumeByVolume.apply(x)
    return F.instance_norm(x, eps=_EPS)


def keeps_layout(x: Tensor) -> bool:
    """Whether the map is on the CPU in channels-last layout only, which `instance_norm` then keeps."""
    return x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()


class InstanceNorm(nn.InstanceNorm3d):
    """`instance_norm` as a layer, without weights."""

    def __init__(self) -> None:
        super().__init__(1, eps=_EPS)  # the number of channels is that of the weights

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, Z, Y, X), see `instance_norm`."""
        return instance_norm(x)


class _VolumeByVolume(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        normalised = torch.empty_like(x)
        mean, inverse_deviation = x.new_empty(x.shape[:2]), x.new_empty(x.shape[:2])
        for i in range(len(x)):
            out = (normalised[i : i + 1], mean[i], inverse_deviation[i])
            torch.native_batch_norm(x[i : i + 1], None, None, None, None, True, 0.0, _EPS, out=out)
        ctx.save_for_backward(x, mean, inverse_deviation)
        return normalised

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, mean, inverse_deviation = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last_3d)
        through = torch.empty_like(x)
        for i in range(len(x)):
            through[i : i + 1] = torch.ops.aten.native_batch_norm_backward(
                gradient[i : i + 1], x[i : i + 1], None, None, None, mean[i], inverse_deviation[i],
                True, _EPS, [True, False, False],
            )[0]  # fmt: skip
        return through


# From this number on the weights of a convolution outweigh its map, and the default layout is faster on a CPU too.
_MANY_CHANNELS = 256


class Pimpic3d(FeaturePyramid):
    """PiMPiC's network (methods.md 3.2 and 3.5); `encoder` has the names of the authors' state dict.

    Encoder level l has base_channels * 2^l channels at stride 2^l. The decoder begins at stride 2^num_scales with the
    channels of the coarsest encoder level; its two finest levels both have base_channels. As published, convolutions
    have a bias and instance normalisation has no weights.

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
        levels: Levels = "encoder",
    ) -> None:
        of_encoder = pyramid_channels(base_channels, num_scales)
        of_decoder = [base_channels, *of_encoder[:-1]]
        shown = of_encoder if levels == "encoder" else [*of_decoder, of_encoder[-1]]
        strides: list[Stride] = [(2**level,) * 3 for level in range(len(shown))]
        super().__init__(shown, strides, in_channels)
        self.levels = levels
        self.divisor = strides[-1]
        self.convolutional = True
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
        x = F.relu_(instance_norm(self.bottleneck(F.max_pool3d(maps[-1], 2))))
        pyramid = [x]
        for block, skip in list(zip(self.decoder, reversed(maps), strict=True))[: len(maps) - self.finest]:
            upsampled = F.interpolate(x, scale_factor=2.0, mode="trilinear", align_corners=True)
            x = block(torch.cat([upsampled, skip], dim=1))
            pyramid.append(x)
        return [x.new_empty(0)] * self.finest + pyramid[::-1]


class ConvBlock(nn.Module):
    """Three times convolution, instance normalisation, ReLU; the first and the third activation are added.

    Maps (B, in_channels, Z, Y, X) to (B, channels, Z, Y, X).
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, channels, 3, padding=1)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.conv3 = nn.Conv3d(channels, channels, 3, padding=1)
        self.norm = InstanceNorm()

    def forward(self, x: Tensor) -> Tensor:
        """Run the block, see above."""
        first = self._activated(self.conv(_in_fast_layout(x, self.conv.out_channels)))
        return first + self._activated(self.conv3(self._activated(self.conv2(first))))

    def _activated(self, x: Tensor) -> Tensor:
        # In place: the backward pass of the normalisation needs its input, not its output.
        return F.relu_(self.norm(x))


class EncoderStage(nn.Module):
    """A `ConvBlock`, under the name that it has in the authors' state dict."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv_block = ConvBlock(in_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Run the block, see there."""
        return self.conv_block(x)


def _in_fast_layout(x: Tensor, channels: int) -> Tensor:
    """The input of convolutions with this number of output channels, in the layout in which they are fastest."""
    channels_last = x.device.type == "cpu" and channels < _MANY_CHANNELS
    return to_channels_last(x) if channels_last else x.contiguous()


def weights_like_maps(module: nn.Module) -> None:
    """Give weights the layout of the maps that they make on a CPU, in place; values and names stay.

    Their gradients have that layout. DistributedDataParallel lays its buckets out like the weights, and would copy and
    warn of gradients that differ.
    """
    for block in module.modules():
        if isinstance(block, ConvBlock) and block.conv.out_channels < _MANY_CHANNELS:
            block.to(memory_format=torch.channels_last_3d)


class PimpicUNet(SegmentationNetwork):
    """`Pimpic3d` with the published 3x3x3 segmentation layer, and one more for every other level of the decoder.

    Plans name it as "nnssl.networks.pimpic_unet.PimpicUNet". The published network has the finest segmentation layer
    only; the others serve nnU-Net's deep supervision. Only `backbone.encoder` is pretrained.
    """

    kernel_size = 3

    @staticmethod
    def pyramid(
        input_channels: int, levels: Levels, base_channels: int, num_scales: int, strides: Sequence[Sequence[int]]
    ) -> Pimpic3d:
        """Build `Pimpic3d`, which has num_scales + 1 levels, see `SegmentationNetwork.pyramid`."""
        check_strides(strides, num_scales + 1)
        return Pimpic3d(input_channels, base_channels, num_scales, levels)
