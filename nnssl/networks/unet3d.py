"""The 3D U-Net of Models Genesis and SuPreM as a feature pyramid, and as a segmentation network that plans can name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.networks.fpn_unet import SegmentationNetwork, check_strides
from nnssl.networks.layout import InFastLayout, in_fast_layout
from nnssl.networks.pyramid import FeaturePyramid, Levels

BASE = 32  # channels of the first convolution
_LEVELS = (64, 128, 256, 512)  # in the authors' names of the stages


class UNet3DPyramid(InFastLayout, FeaturePyramid):
    """The maps of the U-Net of Models Genesis (Zhou et al. 2019), under the names of SuPreM's state dict.

    Stages of two 3x3x3 convolutions, each with a norm and ReLU; pooling of 2 between them, transposed convolutions in
    the decoder. The authors' batch normalisation takes the statistics of its input in evaluation too: with one volume
    that is the instance normalisation that stands here. Encoder levels are the outputs of the stages, at strides 1, 2,
    4 and 8; decoder levels are those of the decoder's stages and the coarsest map of the encoder.

    Args:
        input_channels: Number of channels of the image.
        base_channels: Number of channels of the first convolution; level l has base_channels * 2^(l + 1).
        levels: "encoder" or "decoder".
    """

    def __init__(self, input_channels: int = 1, base_channels: int = BASE, levels: Levels = "encoder") -> None:
        widths = [base_channels * 2 ** (level + 1) for level in range(len(_LEVELS))]
        super().__init__(widths, [(2**level,) * 3 for level in range(len(_LEVELS))], input_channels)
        self.levels = levels
        self.divisor = self.strides[-1]
        self.convolutional = True
        for name, width, below in zip(_LEVELS, widths, (input_channels, *widths), strict=False):
            setattr(self, f"down_tr{name}", Stage((below, width // 2, width)))
        for name, width in list(zip(_LEVELS, widths, strict=True))[-2::-1]:
            setattr(self, f"up_tr{name}", Stage((3 * width, width, width), raised=2 * width))
        self.lay_out()
        if levels == "encoder":
            self.unused = tuple(f"up_tr{name}." for name in _LEVELS[:-1])
            for stage in self._stages("up", _LEVELS[:-1]):
                stage.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map a volume (B, C, Z, Y, X), sides divisible by 8, to its levels, finest first."""
        x = in_fast_layout(x)
        maps: list[Tensor] = []
        for stage in self._stages("down", _LEVELS):
            maps.append(stage.ops(F.max_pool3d(maps[-1], 2) if maps else x))
        if self.levels == "encoder":
            return maps
        pyramid = maps[-1:]
        for stage, skip in zip(self._stages("up", _LEVELS[-2::-1]), maps[-2::-1], strict=True):
            pyramid.append(stage.ops(torch.cat([stage.raised(pyramid[-1]), skip], dim=1)))
        return pyramid[::-1]

    def _stages(self, way: str, names: Sequence[int]) -> list[Stage]:
        return [stage for name in names if isinstance(stage := getattr(self, f"{way}_tr{name}"), Stage)]


class Stage(nn.Module):
    """Two convolutions, and in the decoder the transposed convolution before them.

    Args:
        channels: Of the input, of the map between the convolutions and of the output.
        raised: Number of channels of the coarser map; None in the encoder.
    """

    def __init__(self, channels: tuple[int, int, int], raised: int | None = None) -> None:
        super().__init__()
        if raised is not None:
            self.up_conv = nn.ConvTranspose3d(raised, raised, 2, stride=2)
        first, between, last = channels
        self.ops = nn.Sequential(NormedConvolution(first, between), NormedConvolution(between, last))

    def raised(self, x: Tensor) -> Tensor:
        """A map (B, C, Z, Y, X) at twice its size."""
        return self.up_conv(x)


class NormedConvolution(nn.Module):
    """A 3x3x3 convolution, its norm and ReLU.

    Args:
        in_channels: Of the input.
        out_channels: Of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, padding=1)
        self.bn1 = nn.InstanceNorm3d(out_channels, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, Z, Y, X) to (B, out_channels, Z, Y, X)."""
        return F.relu(self.bn1(self.conv1(x)), inplace=True)


class UNet3D(SegmentationNetwork):
    """`UNet3DPyramid` with a 1x1x1 segmentation layer per level above the coarsest.

    Plans name it as "nnssl.networks.unet3d.UNet3D". Without segmentation layers it has 19.08 M parameters.
    """

    @staticmethod
    def pyramid(
        input_channels: int, levels: Levels, strides: Sequence[Sequence[int]], base_channels: int = BASE
    ) -> UNet3DPyramid:
        """Build `UNet3DPyramid`, see `SegmentationNetwork.pyramid`."""
        check_strides(strides, len(_LEVELS))
        return UNet3DPyramid(input_channels, base_channels, levels)
