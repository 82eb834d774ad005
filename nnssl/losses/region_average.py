"""Averages of a feature map over boxes and over what they leave, for all boxes at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nnssl.networks.pyramid import Stride

_EPS = 1e-9  # in the denominator, in the authors' code


def region_averages(feature_map: Tensor, stride: Stride, boxes: Tensor) -> Tensor:
    """Average a map over the cells that a box touches, and over the other cells (PiMPiC; methods.md 3.2).

    A box [start, stop) of input voxels touches the cells floor(start / stride) to ceil(stop / stride). Both averages
    are sum / (count + 1e-9); one over no cell is exactly 0.

    The indicator of a box is a product of one vector an axis, so that the sums over all boxes are one matrix product
    for two axes and a small one for the third. Nothing loops over the boxes, nothing of the size of the map is made,
    and no precision is lost to running sums over the whole map.

    Args:
        feature_map: (M, C, Z, Y, X) of M patches, any floating type; a cell covers `stride` voxels.
        stride: cumulative stride (z, y, x) of the level.
        boxes: (M, K, 2, 3) integers, start and stop in voxels of the patch, 0 <= start <= stop; a box of zeros touches
            no cell.

    Returns:
        (M, K, 2, C): the average over the box, then over the rest; float64 for float64, else float32.
    """
    wide = feature_map.to(torch.promote_types(feature_map.dtype, torch.float32))
    cells = wide.shape[2:]
    steps, size = boxes.new_tensor(stride), boxes.new_tensor(cells)
    start = torch.div(boxes[:, :, 0], steps, rounding_mode="floor")
    stop = torch.minimum(-torch.div(-boxes[:, :, 1], steps, rounding_mode="floor"), size)
    # The first box is the whole map: what the rest is taken from, in the same product.
    first, last = F.pad(start, (0, 0, 1, 0)), torch.cat([size.expand_as(stop[:, :1]), stop], dim=1)
    sums = _sums(wide, _indicators(first, last, cells, wide.dtype))
    inside, outside = sums[:, 1:], sums[:, :1] - sums[:, 1:]
    count = (stop - start).prod(-1)[..., None]
    others = cells.numel() - count
    # The two sums of an empty rest differ by rounding, which 1e-9 would blow up.
    rest = torch.where(others > 0, outside / (others + _EPS), 0)
    return torch.stack([inside / (count + _EPS), rest], dim=2)


def _indicators(start: Tensor, stop: Tensor, cells: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    """For each axis (M, K, size): 1 for the cells start <= c < stop, else 0."""
    vectors = []
    for axis, size in enumerate(cells):
        cell = torch.arange(size, device=start.device)
        vectors.append(((cell >= start[..., axis, None]) & (cell < stop[..., axis, None])).to(dtype))
    return vectors


def _sums(x: Tensor, indicators: Sequence[Tensor]) -> Tensor:
    """Sum (M, C, Z, Y, X) over boxes: (M, K, C). Which axes come first is such that x need not be copied."""
    along_z, along_y, along_x = indicators
    patches, channels, size_z, _, size_x = x.shape
    boxes = along_z.shape[1]
    if x.is_contiguous(memory_format=torch.channels_last_3d):
        cells = (along_z.unsqueeze(3) * along_y.unsqueeze(2)).flatten(2)
        rows = cells @ x.permute(0, 2, 3, 4, 1).reshape(patches, cells.shape[2], -1)
        return (along_x.unsqueeze(2) @ rows.view(patches, boxes, size_x, channels)).squeeze(2)
    cells = (along_y.unsqueeze(3) * along_x.unsqueeze(2)).flatten(2)
    rows = cells @ x.reshape(patches, -1, cells.shape[2]).mT
    return (rows.view(patches, boxes, channels, size_z) @ along_z.unsqueeze(3)).squeeze(3)
