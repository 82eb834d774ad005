"""vox2vec's downstream set-ups: probing, fine-tuning, and training from scratch (paper, section 4)."""

from __future__ import annotations

from nnssl.finetuning.recipes import FinetuneTrainer, ProbeTrainer, ScratchTrainer
from nnssl.finetuning.vox2vec_recipe import PublishedVox2vec


class nnUNetTrainer_Vox2vecLinearProbe(ProbeTrainer):
    """One linear classifier on the frozen maps of all levels."""

    method = "vox2vec"
    head = "linear"


class nnUNetTrainer_Vox2vecProbe(ProbeTrainer):
    """A U-Net decoder of 1x1x1 convolutions on the frozen maps of all levels."""

    method = "vox2vec"
    head = "nonlinear"


class nnUNetTrainer_Vox2vecFinetune(FinetuneTrainer):
    """The non-linear head; the backbone is frozen at first and trained later."""

    method = "vox2vec"
    head = "nonlinear"


class nnUNetTrainer_Vox2vecScratch(ScratchTrainer):
    """The network of the fine-tuning from random weights, for a fair comparison."""

    method = "vox2vec"
    head = "nonlinear"


class nnUNetTrainer_Vox2vecLinearProbePublished(PublishedVox2vec, ProbeTrainer):
    """The linear probe with the published sampling, loss and sliding window."""

    head = "linear"


class nnUNetTrainer_Vox2vecProbePublished(PublishedVox2vec, ProbeTrainer):
    """The non-linear probe, likewise."""

    head = "nonlinear"


class nnUNetTrainer_Vox2vecFinetunePublished(PublishedVox2vec, FinetuneTrainer):
    """The fine-tuning, likewise."""

    head = "nonlinear"


class nnUNetTrainer_Vox2vecScratchPublished(PublishedVox2vec, ScratchTrainer):
    """The training from random weights, likewise."""

    head = "nonlinear"
