"""nnU-Net's own loss object with the partial-label loss in the place of its innermost part."""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from torch import Tensor, nn

from nnssl.errors import UserError
from nnssl.losses.partial_label import PartialLabelLoss, PartialRegionLoss


class AnnotatedLoss(nn.Module):
    """A loss of (output, target), as nnU-Net's steps call it, that knows what the cases of the batch have annotated.

    Args:
        loss: `PartialLabelLoss` or `PartialRegionLoss`, or nnU-Net's wrapper for deep supervision around one.

    Attributes:
        annotated: (B, C) bool of the batch that comes; set it before every call.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss
        self.annotated = torch.ones(0, 0, dtype=torch.bool)

    def forward(self, output: Any, target: Any) -> Tensor:
        """Return the loss () of logits (B, C, ...) and their target, or of one list of each with deep supervision."""
        annotated = [self.annotated] * len(output) if isinstance(output, (list, tuple)) else self.annotated
        loss: Tensor = self.loss(output, target, annotated)
        return loss


def partial_label_loss(loss: Any, trainer: str) -> AnnotatedLoss:
    """Return the loss for partial labels with the settings, and the weights of deep supervision, of nnU-Net's.

    Args:
        loss: what `nnUNetTrainer._build_loss` returns.
        trainer: its name, for messages.

    Raises:
        UserError: the trainer has another loss than nnU-Net's Dice with cross-entropy.
    """
    deep = isinstance(loss, DeepSupervisionWrapper)
    inner = loss.loss if deep else loss
    if type(inner) not in (DC_and_CE_loss, DC_and_BCE_loss):
        raise UserError(f"{trainer} trains with {type(inner).__name__}, and partial labels need nnU-Net's Dice and "
                        f"cross-entropy; use nnUNetTrainer_PartialLabels")  # fmt: skip
    dice = {"batch_dice": inner.dc.batch_dice, "smooth": inner.dc.smooth, "ddp": inner.dc.ddp}
    weights = {"weight_ce": inner.weight_ce, "weight_dice": inner.weight_dice}
    new: nn.Module
    if isinstance(inner, DC_and_CE_loss):
        new = PartialLabelLoss(**dice, **weights, do_bg=inner.dc.do_bg, ignore_label=inner.ignore_label)
    else:
        new = PartialRegionLoss(**dice, **weights, use_ignore_label=inner.use_ignore_label)
    return AnnotatedLoss(DeepSupervisionWrapper(new, loss.weight_factors) if deep else new)
