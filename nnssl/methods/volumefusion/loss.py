"""Dice and cross-entropy of the classes of fused voxels, and how many of each class are told."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fusion_loss(logits: Tensor, classes: Tensor, counted: Tensor) -> Tensor:
    """Cross-entropy plus 1 - Dice, as nnU-Net trains segmentation, of the voxels that count: 0 is the best.

    nnU-Net's `DC_and_CE_loss` makes the host wait where voxels do not count; its Dice is taken as it is, with all
    classes and each crop by itself.

    Args:
        logits: (B, K, *P).
        classes: (B, 1, *P) uint8.
        counted: (B, 1, *P) bool.

    Returns:
        (B,) losses of the crops, in float32 or wider; exactly 0, with a gradient of 0, for a crop without a voxel that
        counts.
    """
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    soft_dice = MemoryEfficientSoftDiceLoss(batch_dice=False, do_bg=True, smooth=1e-5, ddp=False)
    with torch.autocast(logits.device.type, enabled=False):
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        shares = wide.softmax(1)
        dice = [soft_dice(*(x[None] for x in crop)) for crop in zip(shares, classes, counted, strict=True)]
        entropy = F.cross_entropy(wide, classes[:, 0].long(), reduction="none") * counted[:, 0]
        voxels = counted.flatten(1).sum(1).clamp(min=1)
        return entropy.flatten(1).sum(1) / voxels + 1 + torch.stack(dice)


@torch.no_grad()
def accuracies(logits: Tensor, classes: Tensor, counted: Tensor) -> Tensor:
    """Share (K,) of the voxels of each class that the largest logit tells; float32.

    A class that no voxel has gets the mean of the others, so that the mean of all is 1/K for a constant answer.

    Args:
        logits: (B, K, *P).
        classes: (B, 1, *P) uint8.
        counted: (B, 1, *P) bool, which voxels count.
    """
    told = logits.argmax(1, keepdim=True) == classes
    voxels, hits = [], []
    for number in range(logits.shape[1]):
        mine = (classes == number) & counted
        voxels.append(mine.sum())
        hits.append((mine & told).sum())
    found, of = torch.stack(hits).float(), torch.stack(voxels).float()
    shares, shown = found / of.clamp(min=1), of > 0
    return torch.where(shown, shares, (shares * shown).sum() / shown.sum().clamp(min=1))
