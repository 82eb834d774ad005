"""The set-ups of `nnUNetTrainer_Vox2vec...` for a pretraining of any method: the checkpoint says which.

`nnssl_checkpoint=random` gives the papers' baseline: the same frozen backbone with random weights.
"""

from __future__ import annotations

from nnssl.finetuning.recipes import FinetuneTrainer, ProbeTrainer, ScratchTrainer
from nnssl.finetuning.unet_recipes import UNetFinetuneTrainer, UNetScratchTrainer


class nnUNetTrainer_SSLLinearProbe(ProbeTrainer):
    """One linear classifier on the frozen maps of all levels."""

    head = "linear"


class nnUNetTrainer_SSLProbe(ProbeTrainer):
    """A U-Net decoder of 1x1x1 convolutions on the frozen maps of all levels."""

    head = "nonlinear"


class nnUNetTrainer_SSLFinetune(FinetuneTrainer):
    """The non-linear head; the backbone is frozen at first and trained later."""

    head = "nonlinear"


class nnUNetTrainer_SSLScratch(ScratchTrainer):
    """The network of the fine-tuning from random weights, for a fair comparison."""

    head = "nonlinear"


class nnUNetTrainer_SSLUNetFinetune(UNetFinetuneTrainer):
    """The plans' whole network, trained from the first step; `nnssl_recipe=adamw|sgd` chooses how."""


class nnUNetTrainer_SSLUNetScratch(UNetScratchTrainer):
    """The plans' whole network from random weights, by nnU-Net's own recipe."""
