"""PiMPiC's region averages, its losses PiM and PiC, and the segmentation loss of its fine-tuning (methods.md 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nnssl.networks.pyramid import Stride

_EPS = 1e-9  # in the denominator, in the authors' code


def region_averages(feature_map: Tensor, stride: Stride, boxes: Tensor) -> Tensor:
    """Average a map over the cells that a box touches, and over the other cells (PiMPiC; methods.md 3.2).

    A box [start, stop) of input voxels touches the cells floor(start / stride) to ceil(stop / stride). Both averages
    are sum / (count + 1e-9); an average over no cell is exactly 0.

    The indicator of a box is a product of one vector per axis. The sums over all boxes are therefore one matrix product
    for two axes and a small one for the third, without a loop over boxes, a copy of the map, or running sums that lose
    precision.

    Args:
        feature_map: (M, C, Z, Y, X) of M patches, any floating type; a cell covers `stride` voxels.
        stride: cumulative stride (z, y, x) of the level.
        boxes: (M, K, 2, 3) integers, start and stop in voxels of the patch, 0 <= start <= stop; a box of zeros touches
            no cell.

    Returns:
        (M, K, 2, C): average over the box, then over the rest; float64 for float64, else float32.
    """
    wide = feature_map.to(torch.promote_types(feature_map.dtype, torch.float32))
    cells = wide.shape[2:]
    indicators, lengths = [], []
    for axis, (size, step) in enumerate(zip(cells, stride, strict=True)):
        # The first box is the whole map, from which the rest is computed.
        start = F.pad(boxes[:, :, 0, axis] // step, (1, 0))
        stop = F.pad((-(-boxes[:, :, 1, axis] // step)).clamp(max=size), (1, 0), value=size)
        cell = torch.arange(size, device=boxes.device)
        indicators.append(((cell >= start[..., None]) & (cell < stop[..., None])).to(wide.dtype))
        lengths.append(stop - start)
    sums = _sums(wide, indicators)
    inside, outside = sums[:, 1:], sums[:, :1] - sums[:, 1:]
    count = (lengths[0] * lengths[1] * lengths[2])[:, 1:, None]
    others = cells.numel() - count
    # For an empty rest both sums differ by rounding, which division by 1e-9 would blow up.
    rest = torch.where(others > 0, outside / (others + _EPS), 0)
    return torch.stack([inside / (count + _EPS), rest], dim=2)


def _sums(x: Tensor, indicators: Sequence[Tensor]) -> Tensor:
    """Sum (M, C, Z, Y, X) over boxes: (M, K, C), in an order of axes that needs no copy of x."""
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


EPS = 1e-6  # inside the logarithm, in the authors' code
_STEEP = 0.95  # distance above which `d_extension` makes the loss a straight line


def pair_distances(embeddings: Tensor, overlap: Tensor, include_diagonal: bool = False) -> Tensor:
    """Return D = |S - C| of the pairs of patches, where C are the cosines of their embeddings.

    Args:
        embeddings: (..., N, d) unit vectors, N >= 2.
        overlap: (..., N, N) S, the common share of two patches, in [0, 1]; same type as the embeddings.
        include_diagonal: take all N^2 pairs, both orders and each patch with itself, as the authors' code does.

    Returns:
        (..., N (N - 1) / 2) in [0, 2], pairs i < j; or (..., N^2).
    """
    distance = (overlap - embeddings @ embeddings.mT).abs()
    if include_diagonal:
        return distance.flatten(-2)
    count = distance.shape[-1]
    i, j = torch.triu_indices(count, count, offset=1, device=distance.device)
    return distance[..., i, j]


def pim_loss(distance: Tensor, d_extension: bool = False, eps: float = EPS) -> Tensor:
    """Return the mean of -log(1 - D + eps) over the pairs (methods.md 3.3).

    D is above 1 if overlapping patches have a cosine below S - 1. The authors' code clamps it to 1: such a pair costs
    -log(eps) = 13.8 and has no gradient, and one just below 1 has a gradient of up to 1/eps. With `d_extension`, the
    loss continues above D = 0.95 as a straight line of slope 1 / (0.05 + eps), about 20.

    Args:
        distance: any number of D >= 0, float32 or float64; see `pair_distances`.
        d_extension: continue the loss as a straight line, for a gradient that is bounded and never zero.
        eps: keeps the logarithm finite; at 0 it is the paper's equation, defined for D < 1 only.

    Returns:
        () mean, attached to the graph.
    """
    if not d_extension:
        return -(1 - distance.clamp(0, 1) + eps).log().mean()
    room = 1 - _STEEP + eps
    line = (distance - _STEEP).clamp_min(0) / room
    return (line - (1 - distance.clamp_max(_STEEP) + eps).log()).mean()


# Pairs of rows [overlap of patch 1, overlap of patch 2, rest of patch 1, rest of patch 2]; the first is the positive.
_PAPER_PAIRS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
_CODE_PAIRS = ((0, 1), (0, 1), (0, 2), (0, 3), (1, 2), (1, 3))  # the positive twice, the two rests not


def pic_loss(
    rows: Tensor,
    temperature: float = 1.0,
    objective: Literal["code", "paper"] = "code",
    weights: Tensor | None = None,
) -> Tensor:
    """Return the contrastive loss of N overlapping pairs of patches (methods.md 3.3).

    With e_ij the exponential of the cosine of rows i and j over the temperature, a pair costs

        code:  -log [ 2 e_01 / (2 e_01 + e_02 + e_03 + e_12 + e_13) ],    chance level ln 3, at tau 1 never below 0.2395
        paper: -log [ e_01 / (e_01 + e_02 + e_03 + e_12 + e_13 + e_23) ], chance level ln 6, at tau 1 never below 0.7338

    Args:
        rows: (N, 4, d) unit vectors, float32 or float64: overlap in patch 1, overlap in patch 2, rest of patch 1, rest
            of patch 2. With N = 0 the loss and its gradient are 0.
        temperature: tau > 0.
        objective: form of the loss.
        weights: (N,) weight of each pair; None for the mean.

    Returns:
        () sum of the weighted pairs, attached to the graph.
    """
    cosines = (rows @ rows.mT / temperature).flatten(1)
    pairs = _CODE_PAIRS if objective == "code" else _PAPER_PAIRS
    terms = torch.stack([cosines[:, 4 * i + j] for i, j in pairs], dim=1)
    loss = torch.logsumexp(terms, dim=1) - terms[:, 0] - (math.log(2) if objective == "code" else 0.0)
    return (loss * (1 / max(len(rows), 1) if weights is None else weights)).sum()


_SMOOTH = 1e-5  # MONAI's default, in numerator and denominator


def softmax_dice_loss(logits: Tensor, labels: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the soft Dice loss of mutually exclusive classes, background included.

    With p = softmax(logits) and the one-hot g it is the mean over items and classes of
    1 - (2 sum(p g) + 1e-5) / (sum(p) + sum(g) + 1e-5). Computed in float32 (float64 for float64 logits) under autocast
    too.

    Args:
        logits: (B, C, ...) with C >= 2.
        labels: (B, 1, ...) integers 0 <= label < C, of any type; any number where not `valid`.
        valid: (B, 1, ...) bool, the voxels that count; None for all.

    Returns:
        () loss.

    Raises:
        ValueError: shapes do not fit.
    """
    if logits.ndim < 3 or labels.shape != (logits.shape[0], 1, *logits.shape[2:]):
        raise ValueError(f"logits must be (B, C, ...) and labels (B, 1, ...), got {tuple(logits.shape)} and "
                         f"{tuple(labels.shape)}")  # fmt: skip
    with torch.autocast(logits.device.type, enabled=False):
        probability = F.softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=1)
        if valid is not None:
            probability, labels = probability * valid, labels.masked_fill(~valid, 0)
        truth = torch.zeros_like(probability).scatter_(1, labels.long(), 1)
        truth = truth if valid is None else truth * valid
        voxels = tuple(range(2, logits.ndim))
        overlap, sizes = (probability * truth).sum(voxels), (probability + truth).sum(voxels)
        return (1 - (2 * overlap + _SMOOTH) / (sizes + _SMOOTH)).mean()
