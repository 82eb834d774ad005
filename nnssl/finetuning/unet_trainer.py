"""Fine-tuning of the plans' whole network from a pretrained encoder: what PiMPiC, VoCo and Alice do downstream."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch

from nnssl.finetuning.recipes import RateByEpoch, warmup_cosine_rate
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


class WarmupCosineTrainer(UNetTrainer):
    """AdamW with a decay of 1e-5; the rate rises linearly in the first epochs, then falls as half a cosine."""

    decay: ClassVar[float] = 1e-5
    warmup: ClassVar[int] = 10  # epochs for one of warm-up

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """AdamW over everything."""
        trained = [p for p in self.network_module.parameters() if p.requires_grad]
        optimiser = torch.optim.AdamW(trained, self.initial_lr, weight_decay=self.weight_decay)
        warmup = self.num_epochs // self.warmup
        return optimiser, RateByEpoch(
            optimiser, lambda epoch: warmup_cosine_rate(epoch, self.num_epochs, self.initial_lr, warmup)
        )


class VoCoTrainer(WarmupCosineTrainer):
    """A rate of 3e-4; a tenth of the 1,000 epochs is warm-up (methods.md 2.5)."""

    epochs: ClassVar[int] = 1000


class MaskedTrainer(WarmupCosineTrainer):
    """What UNETR and SwinUNETR are trained with, which Alice's paper refers to (methods.md 4.5).

    Rate 1e-4, a hundredth of the epochs is warm-up, as the authors' code has it for both (MONAI's
    research-contributions, BTCV). Its 5,000 epochs of 24 volumes are 120,000 steps: 500 epochs of 250 here. The plans'
    U-Net, which the paper does not use, is trained in the same way.
    """

    rate: ClassVar[float] = 1e-4
    epochs: ClassVar[int] = 500
    warmup: ClassVar[int] = 100
