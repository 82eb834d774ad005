"""Learning rates of fine-tuning, as functions of the epoch."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch.optim import Optimizer


class RateByEpoch:
    """A scheduler as nnU-Net's trainers use one: every epoch sets the rate of all parameter groups.

    Args:
        optimiser: Whose rate is set.
        rate: Of an epoch, counted from 0.
    """

    def __init__(self, optimiser: Optimizer, rate: Callable[[int], float]) -> None:
        self.optimiser, self.rate = optimiser, rate

    def step(self, epoch: int) -> None:
        """Set the rate of an epoch."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate(epoch)


def vox2vec_unfreezing_rate(epoch: int, frozen_epochs: int = 50, head_rate: float = 3e-4) -> float:
    """Rate of the backbone in vox2vec's fine-tuning, by epochs of 300 steps (paper, section 4).

    0 for the first 50 epochs (15,000 steps), then from a tenth of the head's rate, doubled every epoch, up to the
    head's rate: exponential growth within 1,200 steps.
    """
    if epoch < frozen_epochs:
        return 0.0
    return float(min(head_rate, 0.1 * head_rate * 2 ** (epoch - frozen_epochs)))


def warmup_cosine_rate(epoch: int, num_epochs: int, peak: float, warmup_epochs: int) -> float:
    """Rate that rises linearly for the warm-up and then falls as half a cosine to 0 (VoCo; methods.md 2.5)."""
    if epoch < warmup_epochs:
        return peak * (epoch + 1) / warmup_epochs
    return 0.5 * peak * (1 + math.cos(math.pi * (epoch - warmup_epochs) / max(num_epochs - warmup_epochs, 1)))
