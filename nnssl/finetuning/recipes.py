"""Length and learning rate of a training without a class of its own."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA
from torch.optim import Optimizer

from nnssl.core.errors import UserError
from nnssl.core.names import shown


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


class FlareRecipe(nnUNetTrainer):
    """Adam at 1e-4 without decay, half a cosine to 0 over 1,000 epochs; 250 steps an epoch are nnU-Net's.

    The paper trains on random crops without augmentation, with 2,200 labelled and 1,800 unlabelled cases. Most
    datasets have a hundredth of that, so nnU-Net's augmentation stays on here unless `augments` is False.
    """

    augments: ClassVar[bool] = True
    rate: ClassVar[float] = 1e-4
    decay: ClassVar[float] = 0.0
    epochs: ClassVar[int] = 1000
    steps: ClassVar[int] = 250

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """Adam over everything that has a gradient."""
        trained = [p for p in self.network.parameters() if p.requires_grad]
        optimiser = torch.optim.Adam(trained, self.initial_lr, weight_decay=self.weight_decay)
        rate = self.initial_lr
        return optimiser, RateByEpoch(optimiser, lambda epoch: warmup_cosine_rate(epoch, self.num_epochs, rate, 0))

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, bool, Any, Any]:
        """As the other bases say, or the patch itself where nothing is augmented."""
        rotation, flat, size, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if not self.augments:
            size, axes, self.inference_allowed_mirroring_axes = self.configuration_manager.patch_size, (), None
        return rotation, flat, size, axes

    def get_training_transforms(self, *arguments: Any, **options: Any) -> Any:
        """nnU-Net's augmentation, or those of its transforms that only prepare the label map."""
        kind = nnUNetTrainer if self.augments else nnUNetTrainerNoDA
        return kind.get_training_transforms(*arguments, **options)


LENGTHS = ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch")
RATE = "initial_lr"
_WHOLE = re.compile(r"0*[1-9][0-9]{0,8}")


def apply_settings(trainer: Any, block: Mapping[str, Any]) -> None:
    """Set an nnU-Net trainer's lengths and rate: those of `nnssl_num_epochs` and so on, else those of the plans' block.

    Raises:
        UserError: a length is no whole number of at least 1, or the rate is no number above 0.
    """
    for name in LENGTHS:
        value = _given(name, block)
        if value is None:
            continue
        if not _WHOLE.fullmatch(value):
            raise UserError(f"nnssl_{name} takes a whole number from 1 to 999999999, not {shown(value)}; type: export "
                            f"nnssl_{name}=10")  # fmt: skip
        setattr(trainer, name, int(value))
    if (value := _given(RATE, block)) is not None:
        setattr(trainer, RATE, _rate(value))


def _given(name: str, block: Mapping[str, Any]) -> str | None:
    value = os.environ.get(f"nnssl_{name}") or block.get(name)
    return None if value is None else str(value)


def _rate(value: str) -> float:
    try:
        rate = float(value)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise UserError(f"nnssl_{RATE} takes a number above 0, not {shown(value)}; type: export nnssl_{RATE}=0.001")
    return rate
