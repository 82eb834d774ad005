"""Two volumes fused box by box: how the boxes are drawn, and the class and mixing weight of every voxel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nnssl.methods.base import MethodConfig, Sample, ascending, between, share

_MOST_BOXES, _MOST_CLASSES = 1000, 255  # more boxes than that cover each other; classes are stored in a byte


@dataclass(frozen=True, kw_only=True)
class FusionConfig(MethodConfig):
    """Hyper-parameters of the boxes; [P] is from the paper, [D] our decision.

    The paper draws sides up to 40, 80 and 80 voxels in a patch of 64, 128 and 128.
    """

    boxes: tuple[int, int] = (10, 39)  # fewest and most of a crop [P]
    box_side: int = 8  # voxels, the least [P]; less where the largest side is smaller [D]
    box_share: float = 0.625  # of the patch, the largest side [P]
    classes: int = 5  # mixing weights 0, 1/4, ... 1 [P]

    def __post_init__(self) -> None:
        super().__post_init__()
        ascending(self, 1, _MOST_BOXES, "boxes")
        between(self, 1, 10_000, "box_side")
        share(self, "box_share")
        between(self, 2, _MOST_CLASSES, "classes")


def sample_boxes(rng: np.random.Generator, patch: Sequence[int], config: FusionConfig) -> Sample:
    """Draw the boxes of a crop, each inside of it, with sides and places uniform on every axis.

    Returns:
        "boxes" (M, 2, 3) int32 first voxels and ends, for the most boxes M that a crop may have; those that it has not
        are empty. "box_classes" (M,) uint8.
    """
    most = np.maximum((config.box_share * np.asarray(patch)).astype(np.int64), 1)
    least = np.minimum(config.box_side, most)
    count = int(rng.integers(config.boxes[0], config.boxes[1] + 1))
    sides = rng.integers(least, most + 1, (count, 3))
    starts = rng.integers(0, np.asarray(patch) - sides + 1)
    boxes = np.zeros((config.boxes[1], 2, 3), dtype=np.int32)
    boxes[:count] = np.stack([starts, starts + sides], axis=1)
    return {"boxes": boxes, "box_classes": rng.integers(0, config.classes, config.boxes[1], dtype=np.uint8)}


def class_maps(boxes: Tensor, box_classes: Tensor, size: Sequence[int]) -> Tensor:
    """The class of every voxel: that of the last box that holds it, and 0 outside of all.

    Args:
        boxes: (B, M, 2, 3) first voxels and ends.
        box_classes: (B, M) uint8.
        size: (Z, Y, X) voxels of the crops.

    Returns:
        (B, 1, *size) uint8.
    """
    lines = []  # for each axis (B, M, n): whether a box holds the voxel's number on it
    for axis, extent in enumerate(size):
        places = torch.arange(extent, device=boxes.device)
        first, end = boxes[:, :, :, axis, None].unbind(2)
        lines.append((places >= first) & (places < end))
    z, y, x = lines
    classes = torch.zeros((len(boxes), *size), dtype=torch.uint8, device=boxes.device)
    for box in range(boxes.shape[1]):
        inside = z[:, box, :, None, None] & y[:, box, None, :, None] & x[:, box, None, None, :]
        classes = torch.where(inside, box_classes[:, box, None, None, None], classes)
    return classes[:, None]


def fused(background: Tensor, foreground: Tensor, classes: Tensor, number: int) -> Tensor:
    """Mix two crops, alpha * foreground + (1 - alpha) * background with alpha = class / (number - 1).

    Args:
        background: (B, C, *P) floating.
        foreground: (B, C, *P) of the same type.
        classes: (B, 1, *P) uint8.
        number: of classes.

    Returns:
        (B, C, *P) of that type; exactly one of the crops where the weight is 0 or 1.
    """
    return torch.lerp(background, foreground, classes.to(background.dtype) / (number - 1))
