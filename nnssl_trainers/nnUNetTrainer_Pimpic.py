"""PiMPiC's downstream set-up: the whole network is fine-tuned from the pretrained encoder."""

from __future__ import annotations

from nnssl.finetuning.recipes import PimpicTrainer


class nnUNetTrainer_PimpicFinetune(PimpicTrainer):
    """Encoder pretrained, decoder fresh, everything trained with the paper's optimiser."""

    method = "pimpic"
