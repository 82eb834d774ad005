"""MONAI's U-Net as a segmentation network that plans can name: LAPN's student, and the U-Net of its teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from nnssl.core.errors import UserError
from nnssl.networks.lapn_unet import LapnUNet

CHANNELS = (32, 64, 128, 256, 512)  # 7.938 M parameters with 15 outputs (methods.md 5.2)


class MonaiUNet(nn.Module):
    """MONAI's `UNet`, whose finest upward stage gives the logits (methods.md 5.2, "student").

    Plans name it as "nnssl.networks.monai_unet.MonaiUNet". The first stage already halves the resolution. There is one
    output and no deep supervision.

    Args:
        input_channels: Number of channels of the image.
        num_classes: Number of output channels.
        strides: Stride of each level to the one before: 1, then 2 on every axis, one for each of the channels.
        channels: Of the downward stages and of the bottom layer.
        num_res_units: Convolutions of each residual unit; 0 for single convolutions everywhere, as in the student.
        deep_supervision: Only False is possible.

    Raises:
        UserError: Deep supervision is asked for, MONAI is missing, or `strides` are not those of the network.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        strides: Sequence[Sequence[int]],
        channels: Sequence[int] = CHANNELS,
        num_res_units: int = 0,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        if deep_supervision:
            raise UserError("MonaiUNet has one output and no deep supervision; train it with nnUNetTrainer_LAPN, "
                            "nnUNetTrainer_LAPNDistill, nnUNetTrainer_Distill or "
                            "nnUNetTrainerNoDeepSupervision")  # fmt: skip
        self.backbone = LapnUNet.pyramid(input_channels, "decoder", strides, channels, num_res_units, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map an image (B, input_channels, Z, Y, X) to logits (B, num_classes, Z, Y, X).

        The sides must be multiples of the total stride.
        """
        return self.backbone(x)[0]


_NAME = f"{MonaiUNet.__module__}.{MonaiUNet.__qualname__}"


def has_deep_supervision(configuration: Mapping[str, Any]) -> bool:
    """Tell whether the network of a resolved configuration gives outputs at several resolutions."""
    return bool(configuration.get("architecture", {}).get("network_class_name") != _NAME)
