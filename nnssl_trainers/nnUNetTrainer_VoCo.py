"""VoCo's downstream set-up: the whole network is fine-tuned from the pretrained encoder."""

from __future__ import annotations

from nnssl.finetuning.unet_recipes import VoCoTrainer


class nnUNetTrainer_VoCoFinetune(VoCoTrainer):
    """Encoder pretrained, decoder fresh, everything trained with the paper's optimiser."""

    method = "voco"
