"""STU-Net (Huang et al., arXiv 2304.06716) as a feature pyramid, and as a segmentation network that plans can name."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.core.errors import UserError
from nnssl.networks.fpn_unet import SegmentationNetwork
from nnssl.networks.layout import InFastLayout, in_fast_layout
from nnssl.networks.pyramid import FeaturePyramid, Levels, Stride, cumulative_strides

DIMS, DEPTHS = (32, 64, 128, 256, 512, 512), (1, 1, 1, 1, 1, 1)  # of STU-Net-B


class STUNetPyramid(InFastLayout, FeaturePyramid):
    """The maps of an STU-Net, under the names of the authors' state dict.

    A U-Net of residual blocks with 3x3x3 kernels: the first block of a stage changes the resolution. The decoder
    raises a map by nearest neighbours and a 1x1x1 convolution. Encoder levels are the outputs of the stages; decoder
    levels are those of the decoder's stages and the coarsest map of the encoder.

    Args:
        input_channels: Number of channels of the image.
        dims: Number of channels of each stage.
        depth: Number of blocks of each stage; the decoder's stages have as many.
        strides: Stride (z, y, x) of each stage to the one before; 1 for the first.
        levels: "encoder" or "decoder".

    Raises:
        UserError: The numbers do not fit together.
    """

    def __init__(
        self,
        input_channels: int = 1,
        dims: Sequence[int] = DIMS,
        depth: Sequence[int] = DEPTHS,
        strides: Sequence[Sequence[int]] = ((1, 1, 1), *((2, 2, 2),) * 5),
        levels: Levels = "encoder",
    ) -> None:
        _check_numbers(dims, depth, strides)
        super().__init__(dims, cumulative_strides(strides), input_channels)
        self.levels = levels
        self.divisor = self.strides[-1]
        self.convolutional = True
        self.factors: list[Stride] = [(z, y, x) for z, y, x in reversed(strides[1:])]
        self.conv_blocks_context = nn.ModuleList(
            _stage(fine, coarse, blocks, stride)
            for fine, coarse, blocks, stride in zip((input_channels, *dims[:-1]), dims, depth, strides, strict=True)
        )
        steps = list(zip(pairwise(dims), depth[:-1], strict=True))[::-1]
        self.upsample_layers = nn.ModuleList(RaisingLayer(coarse, fine) for (fine, coarse), _ in steps)
        self.conv_blocks_localization = nn.ModuleList(
            _stage(2 * fine, fine, blocks, (1, 1, 1)) for (fine, _), blocks in steps
        )
        self.lay_out()
        if levels == "decoder":
            self.decoding = ("upsample_layers", "conv_blocks_localization")
        else:
            self.unused = ("upsample_layers.", "conv_blocks_localization.")
            self.upsample_layers.requires_grad_(False)
            self.conv_blocks_localization.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map a volume (B, C, Z, Y, X), sides divisible by `divisor`, to its levels, finest first."""
        x = in_fast_layout(x)
        maps = []
        for stage in self.conv_blocks_context:
            x = stage(x)
            maps.append(x)
        return maps if self.levels == "encoder" else self._decode(maps)

    def _decode(self, maps: list[Tensor]) -> list[Tensor]:
        x = maps[-1]
        pyramid = [x]
        stages = zip(
            self.upsample_layers, self.conv_blocks_localization, reversed(maps[:-1]), self.factors, strict=True
        )
        for raising, stage, skip, factor in list(stages)[: len(maps) - 1 - self.finest]:
            x = stage(torch.cat([raising(x, factor), skip], dim=1))
            pyramid.append(x)
        return [x.new_empty(0)] * self.finest + pyramid[::-1]


class ResidualUnit(nn.Module):
    """Convolution, norm, LeakyReLU, convolution, norm, plus the input or a 1x1x1 convolution of it, LeakyReLU.

    Args:
        in_channels: Of the input.
        out_channels: Of the output.
        stride: Of the first convolution and of that of the input.
        projects: Whether the input goes through a convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: Sequence[int], projects: bool) -> None:
        super().__init__()
        steps = (stride[0], stride[1], stride[2])
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, steps, padding=1)
        self.norm1 = nn.InstanceNorm3d(out_channels, affine=True)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, padding=1)
        self.norm2 = nn.InstanceNorm3d(out_channels, affine=True)
        self.conv3 = nn.Conv3d(in_channels, out_channels, 1, steps) if projects else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, Z, Y, X) to (B, out_channels, Z / stride, Y / stride, X / stride)."""
        inner = self.norm2(self.conv2(F.leaky_relu(self.norm1(self.conv1(x)), inplace=True)))
        return F.leaky_relu(inner.add_(x if self.conv3 is None else self.conv3(x)), inplace=True)


class RaisingLayer(nn.Module):
    """A 1x1x1 convolution, whose cells are then repeated: the same in the other order costs more.

    Args:
        coarse: Number of channels of the input.
        fine: Number of channels of the output.
    """

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(coarse, fine, 1)

    def forward(self, x: Tensor, factor: Stride) -> Tensor:
        """Map (B, coarse, Z, Y, X) to (B, fine, Z * factor, Y * factor, X * factor)."""
        return F.interpolate(self.conv(x), scale_factor=tuple(float(f) for f in factor), mode="nearest")


class STUNet(SegmentationNetwork):
    """`STUNetPyramid` with a 1x1x1 segmentation layer per level above the coarsest.

    Plans name it as "nnssl.networks.stunet.STUNet". With 105 outputs STU-Net-S has 14.60 M parameters, B 58.26 M, L
    440.30 M and H 1457.33 M.
    """

    @staticmethod
    def pyramid(
        input_channels: int,
        levels: Levels,
        strides: Sequence[Sequence[int]],
        dims: Sequence[int] = DIMS,
        depth: Sequence[int] = DEPTHS,
    ) -> STUNetPyramid:
        """Build `STUNetPyramid`, see `SegmentationNetwork.pyramid`."""
        return STUNetPyramid(input_channels, dims, depth, strides, levels)


def _stage(in_channels: int, channels: int, blocks: int, stride: Sequence[int]) -> nn.Sequential:
    units = [ResidualUnit(in_channels, channels, stride, projects=True)]
    units += [ResidualUnit(channels, channels, (1, 1, 1), projects=False) for _ in range(blocks - 1)]
    return nn.Sequential(*units)


def _check_numbers(dims: Sequence[int], depth: Sequence[int], strides: Any) -> None:
    if not len(dims) == len(depth) == len(strides) or len(dims) < 2 or min(depth) < 1:
        raise UserError(f"STU-Net needs as many `dims` as `depth` and `strides`, two or more, and one block or more in "
                        f"each stage, not {list(dims)}, {list(depth)} and {list(strides)}; mend the plans' "
                        f"architecture")  # fmt: skip
    if list(strides[0]) != [1, 1, 1]:
        raise UserError(f"the first stage of STU-Net keeps the resolution; begin its `strides` with 1, 1, 1 instead of "
                        f"{list(strides[0])}")  # fmt: skip
