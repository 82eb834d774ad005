"""Learning rate of a backbone that is frozen first and then trained with its head."""

from __future__ import annotations


def vox2vec_unfreezing_rate(epoch: int, frozen_epochs: int = 50, head_rate: float = 3e-4) -> float:
    """Rate of the backbone in vox2vec's fine-tuning, by epochs of 300 steps (paper, section 4).

    0 for the first 50 epochs (15,000 steps), then from a tenth of the head's rate, doubled every epoch, up to the
    head's rate: exponential growth within 1,200 steps.
    """
    if epoch < frozen_epochs:
        return 0.0
    return float(min(head_rate, 0.1 * head_rate * 2 ** (epoch - frozen_epochs)))
