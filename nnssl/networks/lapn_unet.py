"""LAPN's network: MONAI's residual U-Net as a feature pyramid, and as a segmentation network that plans can name.

MONAI is an extra: it is imported where such a network is built, never before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from nnssl.core.errors import UserError
from nnssl.networks.fpn_unet import SegmentationLayers, check_strides
from nnssl.networks.monai_parts import import_monai
from nnssl.networks.pyramid import FeaturePyramid, Stride, check_halved

CHANNELS = (64, 128, 256, 512, 512)
RESIDUAL_UNITS = 2
ENCODING = 64


class LapnPyramid(FeaturePyramid):
    """MONAI's `UNet` under the names of its state dict, with instance normalisation with weights (methods.md 5.2).

    The first stage already halves the resolution, and the last one does not. Decoder levels are the outputs of the
    upward stages and of the bottom layer, at strides 1, 2, 4, ...: the finest, which ends in a convolution, is the
    encoding. Encoder levels are the outputs of the downward stages at strides 2, 4, ..., the coarsest after the bottom
    layer. As in the other pyramids the whole network is there, and what the levels do not use is neither trained nor
    run.

    Args:
        input_channels: Number of channels of the image.
        channels: Of the downward stages and of the bottom layer.
        num_res_units: Convolutions of each residual unit of the downward stages; 0 for single convolutions everywhere.
        encoding_channels: Number of channels of the finest decoder level.
        levels: "encoder" or "decoder".

    Raises:
        UserError: MONAI is missing, or there are fewer than two channels.
    """

    def __init__(
        self,
        input_channels: int = 1,
        channels: Sequence[int] = CHANNELS,
        num_res_units: int = RESIDUAL_UNITS,
        encoding_channels: int = ENCODING,
        levels: Literal["encoder", "decoder"] = "decoder",
    ) -> None:
        if len(channels) < 2:
            raise UserError(f"MONAI's UNet needs two or more numbers of channels, not {list(channels)}.")
        below = [*channels[:-2], channels[-1]]  # what the coarsest stage is shown as: the bottom layer's output
        shown = below if levels == "encoder" else [encoding_channels, *channels[:-2], channels[-1]]
        strides: list[Stride] = [(2**level,) * 3 for level in range(len(channels))]
        super().__init__(shown, strides[1:] if levels == "encoder" else strides, input_channels)
        self.levels = levels
        self.divisor = strides[-1]
        self.encodes = levels == "decoder"
        self._depth = len(channels) - 1
        self.model: nn.Module = import_unet()(
            spatial_dims=3,
            in_channels=input_channels,
            out_channels=encoding_channels,
            channels=tuple(channels),
            strides=(2,) * (len(channels) - 1),
            num_res_units=num_res_units,
            norm=("INSTANCE", {"affine": True}),
        ).model
        if levels == "encoder":
            self.unused = tuple("model." + "1.submodule." * depth + "2." for depth in range(len(channels) - 1))
            for stage in self._stages().up:
                stage.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map a volume (B, C, Z, Y, X), sides divisible by `divisor`, to its levels, finest first."""
        stages, skips = self._stages(), []
        for stage in stages.down:
            x = stage(x)
            skips.append(x)
        x = stages.bottom(x)
        if self.levels == "encoder":
            return [*skips[:-1], x]
        pyramid = [x]
        for stage, skip in zip(reversed(stages.up), reversed(skips), strict=True):
            x = stage(torch.cat([skip, x], dim=1))  # as MONAI's SkipConnection
            pyramid.append(x)
        return pyramid[::-1]

    def check_patch(self, patch_size: Sequence[int], batch_size: int = 2) -> None:
        """Make sure that every stage halves its map evenly and that instance normalisation sees two voxels.

        Raises:
            UserError: The patch is not divisible by the total stride, or leaves one voxel at the coarsest level.
        """
        check_halved(patch_size, self.divisor, "LAPN's")

    def _stages(self) -> _Stages:
        """MONAI nests its stages: down, the rest with a skip connection around it, up."""
        inner: Any = self.model
        down, up = [], []
        for _ in range(self._depth):
            down.append(inner[0])
            up.append(inner[2])
            inner = inner[1].submodule
        return _Stages(down, inner, up)


class LapnUNet(nn.Module):
    """`LapnPyramid` with a 1x1x1 segmentation layer per level above the bottom layer, with nnU-Net's names.

    nnU-Net builds it from plans whose `network_class_name` is "nnssl.networks.lapn_unet.LapnUNet". The pretrained part
    is `backbone`; `decoder.seg_layers` is what `-pretrained_weights` skips.

    Args:
        input_channels: Number of channels of the image.
        num_classes: Number of output channels.
        strides: Stride of each level to the one before; nnU-Net reads it in the plans to size its targets.
        channels, num_res_units, encoding_channels: See `LapnPyramid`.
        deep_supervision: Return the logits of every level above the bottom layer.

    Raises:
        UserError: MONAI is missing, or `strides` are not those of the network.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        strides: Sequence[Sequence[int]],
        channels: Sequence[int] = CHANNELS,
        num_res_units: int = RESIDUAL_UNITS,
        encoding_channels: int = ENCODING,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = lapn_pyramid(input_channels, "decoder", strides, channels, num_res_units, encoding_channels)
        self.decoder = SegmentationLayers(self.backbone.channels[:-1], num_classes, deep_supervision)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Map an image (B, input_channels, Z, Y, X) to logits (B, num_classes, Z, Y, X), or to a list (see above).

        The sides have to be divisible by the last stride.
        """
        return self.decoder(self.backbone(x)[:-1])


def lapn_pyramid(
    input_channels: int,
    levels: Literal["encoder", "decoder"],
    strides: Sequence[Sequence[int]],
    channels: Sequence[int] = CHANNELS,
    num_res_units: int = RESIDUAL_UNITS,
    encoding_channels: int = ENCODING,
) -> LapnPyramid:
    """Build the pyramid from what plans state about a `LapnUNet`.

    Raises:
        UserError: MONAI is missing, or `strides` are not those of the network.
    """
    check_strides(strides, len(channels))
    return LapnPyramid(input_channels, channels, num_res_units, encoding_channels, levels)


class _Stages(NamedTuple):
    down: list[nn.Module]  # finest first
    bottom: nn.Module
    up: list[nn.Module]  # finest first


def import_unet() -> Any:
    """Import MONAI's `UNet`.

    Raises:
        UserError: MONAI cannot be imported; the line to type is named.
    """
    (unet,) = import_monai("This U-Net", "monai.networks.nets", "UNet")
    return unet
