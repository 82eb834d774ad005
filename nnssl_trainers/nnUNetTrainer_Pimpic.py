"""PiMPiC's downstream set-up: the whole network is fine-tuned from the pretrained encoder."""

from __future__ import annotations

from nnssl.finetuning.pimpic_recipe import PimpicTrainer


class nnUNetTrainer_PimpicFinetune(PimpicTrainer):
    """Encoder pretrained, decoder fresh, everything trained with the paper's loss and augmentation."""

    method = "pimpic"
