"""Stock nnU-Net training for datasets in which each case has only some classes annotated."""

from __future__ import annotations

from nnssl.finetuning.partial_labels import PartialLabels


class nnUNetTrainer_PartialLabels(PartialLabels):
    """nnU-Net's network, optimiser, schedule and augmentation with the loss for partial labels."""
