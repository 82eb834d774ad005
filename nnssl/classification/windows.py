"""A volume as the windows that a fine-tuned network has learned from: whole ones, no part of them is cut off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nnssl.classification.method import body_mean
from nnssl.core.errors import BadCase
from nnssl.core.geometry import Box, sliding_window_boxes
from nnssl.features.body import ALL_AIR
from nnssl.features.model import PretrainedModel


@dataclass(frozen=True)
class Window:
    """A window with body in it.

    Args:
        box: in voxels of the volume; it may leave it.
        cells: (C, Z', Y', X') map of a level.
        body: (Z, Y, X) bool, False outside of the volume.
    """

    box: Box
    cells: Tensor
    body: Tensor

    @property
    def features(self) -> Tensor:
        """(C,) mean over the body, as in the training."""
        return body_mean(self.cells[None], self.body[None])[0]


@torch.no_grad()
def windows(
    model: PretrainedModel, level: int, values: NDArray[np.float32], body: NDArray[np.bool_], device: str
) -> Iterator[Window]:
    """Windows of the training's patch size that overlap by half, inside of the volume; smaller volumes are centred.

    Args:
        model: on the device.
        level: of its pyramid.
        values: (C, Z, Y, X), preprocessed.
        body: (Z, Y, X).
        device: where the model is.

    Raises:
        BadCase: the body is empty.
    """
    if not body.any():
        raise BadCase(ALL_AIR)
    size, patch = np.asarray(body.shape), np.asarray(model.patch_size)
    aside = np.maximum(patch - size, 0) // 2
    for found in sliding_window_boxes(np.maximum(size, patch).tolist(), patch.tolist(), (patch // 2).tolist()):
        box = Box(found.start - aside, found.stop - aside)
        inside = _cut(body, box)
        if inside.any():
            pyramid = model.backbone(_cut(values, box)[None].to(device))[model.backbone.finest :]
            yield Window(box, pyramid[level][0].float(), inside.to(device))


def _cut(array: NDArray, box: Box) -> Tensor:
    """A box of the last three axes, zero outside of the array."""
    size = np.asarray(array.shape[-3:])
    start, stop = np.clip(box.start, 0, size), np.clip(box.stop, 0, size)
    part: Any = (..., *map(slice, start.tolist(), stop.tolist()))
    inner = torch.from_numpy(array[part])
    (z, y, x), (z1, y1, x1) = (start - box.start).tolist(), (box.stop - stop).tolist()
    return F.pad(inner, (x, x1, y, y1, z, z1))


def window_vector(found: Iterator[Window]) -> Tensor:
    """(C,) mean of the windows' features; each counts by its voxels of the body."""
    total, count = torch.zeros(()), 0.0
    for window in found:
        weight = float(window.body.sum())
        total = total + weight * window.features.cpu().double()
        count += weight
    return total / count


def spread_maps(found: Iterator[Window], weights: Tensor, bias: float, size: Sequence[int]) -> NDArray[np.float32]:
    """Each voxel's part of a score (Z, Y, X), averaged over the windows that hold it; 0 where none does.

    Args:
        found: windows of a volume.
        weights: (C,) of the score.
        bias: of the score.
        size: (Z, Y, X) voxels of the volume.
    """
    total, count = np.zeros(tuple(size), np.float32), np.zeros(tuple(size), np.float32)
    for window in found:
        part = torch.einsum("c,czyx->zyx", weights.to(window.cells), window.cells) + bias
        whole = part.cpu().numpy()
        for axis, (n, cells) in enumerate(zip(window.body.shape, window.cells.shape[1:], strict=True)):
            whole = whole.repeat(n // cells, axis)
        start, stop = np.maximum(window.box.start, 0), np.minimum(window.box.stop, size)
        place = tuple(map(slice, start.tolist(), stop.tolist()))
        source = tuple(map(slice, (start - window.box.start).tolist(), (stop - window.box.start).tolist()))
        total[place] += whole[source]
        count[place] += 1
    return (total / np.maximum(count, 1)).astype(np.float32)
