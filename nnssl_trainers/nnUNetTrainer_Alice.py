"""Downstream set-ups of Alice and of its baseline, MAE: the whole network is fine-tuned from the pretrained encoder."""

from __future__ import annotations

from nnssl.finetuning.unet_recipes import MaskedTrainer, NNFormerTrainer


class nnUNetTrainer_AliceFinetune(MaskedTrainer):
    """UNETR, SwinUNETR or the plans' U-Net: encoder pretrained, decoder fresh, everything trained."""

    method = "alice"


class nnUNetTrainer_AliceNNFormerFinetune(NNFormerTrainer):
    """nnFormer, with its own recipe and deep supervision: encoder pretrained, decoder fresh, everything trained."""

    method = "alice"


class nnUNetTrainer_MAEFinetune(MaskedTrainer):
    """The same from a pretraining with `mae`."""

    method = "mae"
