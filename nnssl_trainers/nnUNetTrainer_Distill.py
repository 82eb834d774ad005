"""Distillation: the plans' network learns from labels and from a trained model (LAPN, FLARE challenge)."""

from __future__ import annotations

from nnssl.finetuning.distillation import DistillTrainer, StudentTrainer


class nnUNetTrainer_Distill(DistillTrainer):
    """The teacher is the one that is named, or the only other model of the dataset, configuration and fold."""


class nnUNetTrainer_LAPNDistill(DistillTrainer):
    """The teacher is the `nnUNetTrainer_LAPN` of the dataset, configuration and fold, unless another is named."""

    teacher_trainer = "nnUNetTrainer_LAPN"


class nnUNetTrainer_LAPNScratch(StudentTrainer):
    """Network, recipe and augmentation of a student without a teacher, for comparison."""
