"""LAPN's network: MONAI's residual U-Net as a feature pyramid, and as a segmentation network that plans can name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nnssl.core.errors import UserError
from nnssl.networks.fpn_unet import SegmentationNetwork, check_strides
from nnssl.networks.monai_parts import import_monai
from nnssl.networks.pyramid import FeaturePyramid, Levels, Stride

CHANNELS = (64, 128, 256, 512, 512)
RESIDUAL_UNITS = 2
ENCODING = 64


class LapnPyramid(FeaturePyramid):
    """MONAI's `UNet` under the names of its state dict, with instance normalisation with weights (methods.md 5.2).

    The first stage already halves the resolution, and the last one does not. Decoder levels are the outputs of the
    upward stages and of the bottom layer, at strides 1, 2, 4, ...; the finest, which ends in a convolution, is the
    encoding. Encoder levels are the outputs of the downward stages at strides 2, 4, ..., the coarsest after the bottom
    layer. The whole network is built; stages that the levels do not use are neither trained nor run.

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
        levels: Levels = "decoder",
    ) -> None:
        if len(channels) < 2:
            raise UserError(f"MONAI's UNet needs two or more `channels`, not {list(channels)}; mend the plans")
        below = [*channels[:-2], channels[-1]]  # the bottom layer's output takes the place of the coarsest stage's
        shown = below if levels == "encoder" else [encoding_channels, *below]
        strides: list[Stride] = [(2**level,) * 3 for level in range(len(channels))]
        super().__init__(shown, strides[1:] if levels == "encoder" else strides, input_channels)
        self.levels = levels
        self.divisor = strides[-1]
        self.convolutional = True
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

    def _stages(self) -> _Stages:
        """MONAI nests its stages: down, the rest with a skip connection around it, up."""
        inner: Any = self.model
        down, up = [], []
        for _ in range(self._depth):
            down.append(inner[0])
            up.append(inner[2])
            inner = inner[1].submodule
        return _Stages(down, inner, up)


class LapnUNet(SegmentationNetwork):
    """`LapnPyramid` with a 1x1x1 segmentation layer per level above the bottom layer.

    Plans name it as "nnssl.networks.lapn_unet.LapnUNet".
    """

    @staticmethod
    def pyramid(
        input_channels: int,
        levels: Levels,
        strides: Sequence[Sequence[int]],
        channels: Sequence[int] = CHANNELS,
        num_res_units: int = RESIDUAL_UNITS,
        encoding_channels: int = ENCODING,
    ) -> LapnPyramid:
        """Build `LapnPyramid`, see `SegmentationNetwork.pyramid`."""
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
