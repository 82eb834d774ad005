"""Fine-tuning of the plans' whole network from a pretrained encoder: what PiMPiC and VoCo do downstream."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch

from nnssl.finetuning.schedules import RateByEpoch, warmup_cosine_rate
from nnssl.finetuning.trainer import PretrainedTrainer


class UNetTrainer(PretrainedTrainer):
    """The plans' segmentation network: the pretrained part loaded, the rest fresh, everything trained at once.

    Mirroring stays on, as the network can get used to it. Iterations are nnU-Net's 250 an epoch; deep supervision is
    off, as in both papers.
    """

    head: ClassVar[Literal["linear", "nonlinear", "unet"]] = "unet"
    mirrors: ClassVar[bool] = True
    steps: ClassVar[int] = 250


class PimpicTrainer(UNetTrainer):
    """Adam at a constant 1e-5 without decay, up to 500 epochs (PiMPiC; methods.md 3.5)."""

    rate: ClassVar[float] = 1e-5
    epochs: ClassVar[int] = 500


class VoCoTrainer(UNetTrainer):
    """AdamW at 3e-4 with a decay of 1e-5; a tenth of the 1,000 epochs is warm-up, then a cosine (methods.md 2.5)."""

    epochs: ClassVar[int] = 1000
    decay: ClassVar[float] = 1e-5

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """AdamW over everything."""
        trained = [p for p in self.network_module.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(trained, self.initial_lr, weight_decay=self.weight_decay)
        warmup = self.num_epochs // 10
        return optimiser, RateByEpoch(
            optimiser, lambda epoch: warmup_cosine_rate(epoch, self.num_epochs, self.initial_lr, warmup)
        )
