"""The segmentation loss of PiMPiC's fine-tuning (methods.md 3.5)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_SMOOTH = 1e-5  # MONAI's default, in numerator and denominator


def softmax_dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the soft Dice loss of mutually exclusive classes, background included.

    With p = softmax(logits) and the one-hot g it is the mean over items and classes of
    1 - (2 sum(p g) + 1e-5) / (sum(p) + sum(g) + 1e-5). Computed in float32 (float64 for float64 logits) whatever the
    autocast.

    Args:
        logits: (B, C, ...) with C >= 2.
        labels: (B, 1, ...) integers 0 <= label < C, of any type.

    Returns:
        () loss.

    Raises:
        ValueError: shapes do not fit.
    """
    if logits.ndim < 3 or labels.shape != (logits.shape[0], 1, *logits.shape[2:]):
        raise ValueError(f"logits must be (B, C, ...) and labels (B, 1, ...), got {tuple(logits.shape)} and "
                         f"{tuple(labels.shape)}")  # fmt: skip
    with torch.autocast(logits.device.type, enabled=False):
        probability = functional.softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=1)
        truth = torch.zeros_like(probability).scatter_(1, labels.long(), 1)
        voxels = tuple(range(2, logits.ndim))
        overlap, sizes = (probability * truth).sum(voxels), (probability + truth).sum(voxels)
        return (1 - (2 * overlap + _SMOOTH) / (sizes + _SMOOTH)).mean()
