"""Small pixel encoders made by hand, whose cells see a known part of the image only."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.networks.encodings import EncodingHead, PixelEncoder
from nnssl.networks.pyramid import FeaturePyramid, Stride


class Averages(FeaturePyramid):
    """Means of random filters over the cells: a cell sees its own voxels and one more on each side."""

    def __init__(self, strides: Sequence[Stride], channels: int = 16, input_channels: int = 1) -> None:
        super().__init__([channels] * len(strides), strides, input_channels)
        self.divisor = strides[-1]
        self.filters = nn.Conv3d(input_channels, channels, 3, padding=1)
        self.seen: list[torch.Size] = []

    def forward(self, x: Tensor) -> list[Tensor]:
        self.seen.append(x.shape)
        filtered = torch.tanh(self.filters(x))
        return [F.avg_pool3d(filtered, stride, stride) for stride in self.strides]


def averaging_encoder(fine: Stride = (1, 2, 2), coarse: Stride = (2, 4, 4), **options: int) -> PixelEncoder:
    torch.manual_seed(0)
    backbone = Averages([fine, coarse], **options)
    return PixelEncoder(
        backbone, {"fine": EncodingHead(backbone, 0, 16), "coarse": EncodingHead(backbone, 1, 12)}
    ).freeze()


class Projections(FeaturePyramid):
    """Random projections of what surrounds a voxel, but for its mean: like places are alike, others are not."""

    def __init__(self, strides: Sequence[Stride], channels: int = 128) -> None:
        super().__init__([channels] * len(strides), strides, 1)
        self.divisor = strides[-1]
        self.filters = nn.Conv3d(1, channels, (5, 9, 9), padding=(2, 4, 4), bias=False)
        with torch.no_grad():
            weight = torch.randn_like(self.filters.weight)
            self.filters.weight.copy_(weight - weight.mean((2, 3, 4), keepdim=True))

    def forward(self, x: Tensor) -> list[Tensor]:
        projected = self.filters(x)
        return [F.avg_pool3d(projected, stride, stride) for stride in self.strides]


def projecting_encoder(fine: Stride = (1, 2, 2), coarse: Stride = (2, 4, 4)) -> PixelEncoder:
    torch.manual_seed(0)
    backbone = Projections([fine, coarse])
    encoder = PixelEncoder(
        backbone, {"fine": EncodingHead(backbone, 0, 128), "coarse": EncodingHead(backbone, 1, 128)}
    ).freeze()
    for head in encoder.named_heads().values():
        assert head.layer is not None and head.layer.bias is not None
        head.layer.bias.zero_()
    return encoder
