"""LAPN's downstream set-up: the plans' U-Net reads the image and the frozen encodings of every voxel."""

from __future__ import annotations

from nnssl.finetuning.encodings import EncodingsTrainer


class nnUNetTrainer_LAPN(EncodingsTrainer):
    """Encodings of a `lapn` pretraining."""

    method = "lapn"


class nnUNetTrainer_SSLEncodings(EncodingsTrainer):
    """Encodings of any pretraining that encodes pixels: `lapn` or `sam`."""
