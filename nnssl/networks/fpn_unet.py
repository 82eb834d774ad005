"""vox2vec's network as a segmentation network that plans can name: stock nnU-Net trains it and predicts with it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from nnssl.errors import UserError
from nnssl.networks.fpn import FPN3d


class FPN3dUNet(nn.Module):
    """`FPN3d` with a 1x1x1 segmentation layer per level above the bottleneck, with nnU-Net's names.

    nnU-Net builds it from plans whose `network_class_name` is "nnssl.networks.fpn_unet.FPN3dUNet". The pretrained part
    is `backbone`; `decoder.seg_layers` is what `-pretrained_weights` skips. Deep supervision needs a patch that is
    divisible by 2^(num_scales - 2): nnU-Net rounds the sizes of its targets, the network rounds up.

    Args:
        input_channels: Number of channels of the image.
        num_classes: Number of output channels.
        base_channels: Number of channels of the finest level.
        num_scales: Number of levels.
        strides: Stride of each level to the one before; nnU-Net reads it in the plans to size its targets.
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
        check_strides(strides, num_scales)
        self.backbone = FPN3d(input_channels, base_channels, num_scales)
        self.decoder = SegmentationLayers(self.backbone.channels[:-1], num_classes, deep_supervision)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Map an image (B, input_channels, Z, Y, X) to logits (B, num_classes, Z, Y, X), or to a list (see above)."""
        return self.decoder(self.backbone(x)[:-1])


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
    """Make sure that the strides of the plans are 1, then 2 on every axis.

    Raises:
        UserError: They are not.
    """
    expected = [[1, 1, 1]] + [[2, 2, 2]] * (num_scales - 1)
    if [list(stride) for stride in strides] != expected:
        raise UserError(
            f"This network halves every axis at each scale: set `strides` in the plans' architecture to {expected}."
        )
