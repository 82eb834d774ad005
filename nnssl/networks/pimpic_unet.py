"""PiMPiC's network as a segmentation network that plans can name: stock nnU-Net trains it and predicts with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from nnssl.networks.fpn_unet import SegmentationLayers, check_strides
from nnssl.networks.pimpic_encoder import Pimpic3d


class PimpicUNet(nn.Module):
    """`Pimpic3d` with the published 3x3x3 segmentation layer, and one more for every other level of the decoder.

    nnU-Net builds it from plans whose `network_class_name` is "nnssl.networks.pimpic_unet.PimpicUNet". The pretrained
    part is `backbone.encoder`; `decoder.seg_layers` is what `-pretrained_weights` skips. The published network has the
    finest segmentation layer only: the others serve nnU-Net's deep supervision.

    Args:
        input_channels: Number of channels of the image.
        num_classes: Number of output channels.
        base_channels: Number of channels of the finest level.
        num_scales: Number of levels of the encoder.
        strides: Stride of each of the num_scales + 1 levels to the one before; nnU-Net reads it in the plans to size
            its targets.
        deep_supervision: Return the logits of every level above the bottleneck.

    Raises:
        UserError: `strides` are not those of the network.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        base_channels: int,
        num_scales: int,
        strides: Sequence[Sequence[int]],
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = pimpic_pyramid(input_channels, "decoder", base_channels, num_scales, strides)
        self.decoder = SegmentationLayers(self.backbone.channels[:-1], num_classes, deep_supervision, kernel_size=3)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Map an image (B, input_channels, Z, Y, X) to logits (B, num_classes, Z, Y, X), or to a list (see above).

        The sides have to be divisible by 2^num_scales.
        """
        return self.decoder(self.backbone(x)[:-1])


def pimpic_pyramid(
    input_channels: int,
    levels: Literal["encoder", "decoder"],
    base_channels: int,
    num_scales: int,
    strides: Sequence[Sequence[int]],
) -> Pimpic3d:
    """Build the pyramid from what plans state about a `PimpicUNet`.

    Raises:
        UserError: `strides` are not those of the network.
    """
    check_strides(strides, num_scales + 1)
    return Pimpic3d(input_channels, base_channels, num_scales, levels)
