"""nnU-Net's U-Nets as feature pyramids."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nnssl.core.errors import UserError
from nnssl.networks.pyramid import FeaturePyramid, Stride, check_three_axes, format_size, to_channels_last


class UNetPyramid(FeaturePyramid):
    """A whole U-Net of the plans, seen through its feature maps.

    The network is the attribute `network`, complete and unchanged, so that its state dict is the one nnU-Net expects.
    What the levels do not use (the segmentation layers, and for encoder levels the whole decoder) has no gradient:
    DistributedDataParallel refuses parameters that take no part in the loss.

    Args:
        network: A three-dimensional U-Net of dynamic_network_architectures.
        levels: "encoder" for all encoder stages; "decoder" for all decoder stages and the bottleneck.

    Raises:
        UserError: The network is two-dimensional or not a U-Net of a known kind.
    """

    def __init__(self, network: nn.Module, levels: Literal["encoder", "decoder"]) -> None:
        _check_network(network)
        encoder: Any = network.encoder
        decoder: Any = network.decoder
        # A decoder stage has the channels and the stride of the encoder stage whose skip connection it takes.
        super().__init__(
            [int(channels) for channels in encoder.output_channels],
            _cumulative_strides(encoder.strides),
            _first_convolution(encoder).in_channels,
        )
        self.levels = levels
        self.divisor = self.strides[-1]
        self.unused = ("network.decoder.",) if levels == "encoder" else ("network.decoder.seg_layers.",)
        # The faster layout of a CPU's convolutions; the maps take it from the weights.
        self.network: Any = network.to(memory_format=torch.channels_last_3d)
        decoder.seg_layers.requires_grad_(False)
        if levels == "decoder":
            self.decoding = ("network.decoder.transpconvs", "network.decoder.stages")
        else:
            # `decoder.encoder` is the encoder itself.
            shared = {id(parameter) for parameter in encoder.parameters()}
            for parameter in decoder.parameters():
                if id(parameter) not in shared:
                    parameter.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map a volume (B, C, Z, Y, X) to its levels, finest first."""
        skips = self.network.encoder(to_channels_last(x))
        return skips if self.levels == "encoder" else self._decode(skips)

    def _decode(self, skips: list[Tensor]) -> list[Tensor]:
        """The decoder's own computation (`UNetDecoder.forward`), keeping the maps in place of the segmentations."""
        decoder = self.network.decoder
        x = skips[-1]
        pyramid = [x]
        steps = list(zip(decoder.transpconvs, decoder.stages, reversed(skips[:-1]), strict=True))
        for upsample, stage, skip in steps[: len(steps) - self.finest]:
            x = stage(torch.cat((upsample(x), skip), dim=1))
            pyramid.append(x)
        return [x.new_empty(0)] * self.finest + pyramid[::-1]

    def check_patch(self, patch_size: Sequence[int], batch_size: int = 2) -> None:
        """Make sure that every stage divides its map evenly and that no normalisation sees a single value.

        Raises:
            UserError: The patch is not divisible by the total stride, or leaves one voxel at the bottleneck.
        """
        patch = check_three_axes(patch_size)
        total_stride = self.strides[-1]
        below = [size // stride * stride for size, stride in zip(patch, total_stride, strict=True)]
        above = [-(-size // stride) * stride for size, stride in zip(patch, total_stride, strict=True)]
        if list(patch) != above:
            nearest = [format_size(size) for size in (below, above) if min(size) > 0]
            raise UserError(
                f"The patch size {format_size(patch)} must be divisible by {format_size(total_stride)}, the total "
                f"stride of the network: use {' or '.join(nearest)}."
            )
        normalisation = self.network.encoder.norm_op
        if normalisation is None or patch != total_stride:
            return
        if normalisation is nn.InstanceNorm3d or batch_size == 1:
            doubled = [format_size([n * 2 if a == axis else n for a, n in enumerate(patch)]) for axis in range(3)]
            raise UserError(
                f"The patch size {format_size(patch)} leaves one voxel at the coarsest level, which normalisation "
                f"would set to zero: use {', '.join(doubled[:2])} or {doubled[2]}."
            )


def _check_network(network: nn.Module) -> None:
    from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
    from dynamic_network_architectures.building_blocks.unet_residual_decoder import UNetResDecoder

    decoder = getattr(network, "decoder", None)
    if not isinstance(decoder, UNetDecoder | UNetResDecoder):
        raise UserError(
            f"The network {type(network).__name__} is no U-Net of a known kind: use plans whose network is "
            "PlainConvUNet or ResidualEncoderUNet."
        )
    if decoder.encoder.conv_op is not nn.Conv3d:
        raise UserError("The network is two-dimensional: choose a 3D configuration of the plans, such as 3d_fullres.")


def _first_convolution(encoder: nn.Module) -> nn.Conv3d:
    return next(module for module in encoder.modules() if isinstance(module, nn.Conv3d))


def _cumulative_strides(strides: Sequence[Sequence[int]]) -> list[Stride]:
    """Multiply the strides of the stages up to each level."""
    per_axis = zip(*strides, strict=True)
    z, y, x = ([prod(axis[: level + 1]) for level in range(len(axis))] for axis in per_axis)
    return list(zip(z, y, x, strict=True))
