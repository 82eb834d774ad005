"""nnU-Net's U-Nets as feature pyramids."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from nnssl.core.errors import UserError
from nnssl.networks.layout import InFastLayout, in_fast_layout
from nnssl.networks.pyramid import FeaturePyramid, cumulative_strides


class UNetPyramid(InFastLayout, FeaturePyramid):
    """The feature maps of a U-Net of the plans.

    The attribute `network` is that U-Net, complete and unchanged, so that its state dict is the one nnU-Net expects.
    Parameters that the levels do not use (the segmentation layers, and for encoder levels the whole decoder) have no
    gradient, because DistributedDataParallel refuses parameters that take no part in the loss.

    Args:
        network: A three-dimensional U-Net of dynamic_network_architectures.
        levels: "encoder" for all encoder stages; "decoder" for all decoder stages and the bottleneck.

    Raises:
        UserError: The network is two-dimensional or not a known U-Net.
    """

    def __init__(self, network: nn.Module, levels: Literal["encoder", "decoder"]) -> None:
        _check_network(network)
        encoder: Any = network.encoder
        decoder: Any = network.decoder
        # A decoder stage has the channels and the stride of the encoder stage that its skip connection comes from.
        super().__init__(
            [int(channels) for channels in encoder.output_channels],
            cumulative_strides(encoder.strides),
            next(module for module in encoder.modules() if isinstance(module, nn.Conv3d)).in_channels,
        )
        self.levels = levels
        self.divisor = self.strides[-1]
        self.convolutional = True
        self.unused = ("network.decoder.",) if levels == "encoder" else ("network.decoder.seg_layers.",)
        self.network: Any = network
        self.lay_out()
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
        skips = self.encode(x)
        return skips if self.levels == "encoder" else self.decode(skips)

    def encode(self, x: Tensor) -> list[Tensor]:
        """The maps of the encoder's stages, finest first."""
        skips: list[Tensor] = self.network.encoder(in_fast_layout(x))
        return skips

    def decode(self, skips: list[Tensor]) -> list[Tensor]:
        """Compute what `UNetDecoder.forward` does, but keep the maps instead of the segmentations."""
        decoder = self.network.decoder
        x = skips[-1]
        pyramid = [x]
        steps = list(zip(decoder.transpconvs, decoder.stages, reversed(skips[:-1]), strict=True))
        for upsample, stage, skip in steps[: len(steps) - self.finest]:
            x = stage(torch.cat((upsample(x), skip), dim=1))
            pyramid.append(x)
        return [x.new_empty(0)] * self.finest + pyramid[::-1]

    def takes_single_voxels(self, batch_size: int) -> bool:
        """Whether patches may have one voxel at the bottleneck in training: batch normalisation needs a second one."""
        normalisation = self.network.encoder.norm_op
        return normalisation is None or (normalisation is not nn.InstanceNorm3d and batch_size > 1)


def _check_network(network: nn.Module) -> None:
    from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
    from dynamic_network_architectures.building_blocks.unet_residual_decoder import UNetResDecoder

    decoder = getattr(network, "decoder", None)
    if not isinstance(decoder, UNetDecoder | UNetResDecoder):
        raise UserError(f"the network {type(network).__name__} is not a known U-Net; use plans whose network is "
                        f"PlainConvUNet or ResidualEncoderUNet")  # fmt: skip
    if decoder.encoder.conv_op is not nn.Conv3d:
        raise UserError(
            "the network is two-dimensional; choose a 3D configuration of the plans with -c, such as 3d_fullres"
        )
