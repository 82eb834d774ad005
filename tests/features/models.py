"""Pretrained models made by hand, whose cells see a known part of the image only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nnssl.checkpoints.pretrained import Pretrained
from nnssl.features.model import PretrainedModel
from nnssl.networks.pyramid import FeaturePyramid, Stride
from tests.features.encoders import Averages
from tests.pretrainings import CT_JSON, tiny_plans

STRIDES: tuple[Stride, ...] = ((1, 2, 2), (2, 4, 4), (4, 8, 8))


class AnySize(Averages):
    def check_patch(self, patch_size: Sequence[int], batch_size: int = 2) -> None:
        """Every size will do."""


def averaging_model(
    patch_size: Sequence[int] = (16, 32, 32), strides: Sequence[Stride] = STRIDES, channels: int = 3
) -> PretrainedModel:
    """A cell sees its own voxels and one more on each side; the coarsest one has a border of a cell in every tile."""
    torch.manual_seed(0)
    return _model(AnySize(strides, channels=channels), patch_size)


class Means(FeaturePyramid):
    """The image itself, in cells of one voxel by 2 x 2."""

    def __init__(self) -> None:
        super().__init__([1], [(1, 2, 2)], 1)
        self.divisor = (1, 2, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [F.avg_pool3d(x, self.strides[0], self.strides[0])]

    def check_patch(self, patch_size: Sequence[int], batch_size: int = 2) -> None:
        """Every size will do."""


def mean_model(**plans: Any) -> PretrainedModel:
    """A feature is the mean of its cell."""
    return _model(Means(), (16, 32, 32), **plans)


def _model(backbone: FeaturePyramid, patch_size: Sequence[int], **plans: Any) -> PretrainedModel:
    pretrained = Pretrained(
        Path("checkpoint of another test"),
        "voco",
        "encoder",
        tiny_plans() | plans,
        "3d_fullres",
        CT_JSON,
        {},
        {},
        "LPS",
        {},
        "voco",
    )
    return PretrainedModel(backbone, pretrained, patch_size)
