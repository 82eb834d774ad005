"""The segmentation loss of vox2vec's probes and fine-tuning (paper, section 3.4; methods.md 1.5)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def vox2vec_segmentation_loss(logits: Tensor, target: Tensor, roi: Tensor | None = None) -> Tensor:
    """Return the mean binary cross-entropy inside the body plus the soft Dice loss there.

    Dice is, with p = sigmoid(logits), the mean over items and classes of 1 - 2 sum(p g) / (sum(p^2) + sum(g^2) + 1).
    Computed in float32 (float64 for float64 logits) whatever the autocast. An item whose roi is empty has a Dice loss
    of 1 without gradient.

    Args:
        logits: (B, C, ...) one binary decision a class.
        target: (B, C, ...) 0 or 1, any dtype; classes may overlap.
        roi: (B, ...) true inside the body; None takes every voxel.

    Returns:
        () loss.

    Raises:
        ValueError: shapes do not fit.
    """
    if logits.ndim < 3 or target.shape != logits.shape:
        raise ValueError(f"logits and target must be (B, C, ...), got {tuple(logits.shape)} and {tuple(target.shape)}")
    if roi is not None and roi.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(f"roi must have the shape of logits without the class axis, got {tuple(roi.shape)}")
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits if logits.dtype == torch.float64 else logits.float()
        inside = torch.ones_like(logits[:, :1]) if roi is None else roi[:, None].to(logits.dtype)
        target = target.to(logits.dtype)
        cross_entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none") * inside
        voxels = tuple(range(2, logits.ndim))
        probability, truth = logits.sigmoid() * inside, target * inside
        overlap = (probability * truth).sum(voxels)
        squares = probability.square().sum(voxels) + truth.square().sum(voxels)
        # The mean over roi voxels and classes; an empty roi divides its 0 by 1.
        mean = cross_entropy.sum() / (inside.sum() * logits.shape[1]).clamp_min(1)
        return mean + (1 - 2 * overlap / (squares + 1)).mean()
