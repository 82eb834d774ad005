"""How the papers train on feature maps: rates, optimisers and what is frozen; what `nnssl_trainers` is made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA
from torch.nn.parallel import DistributedDataParallel

from nnssl.finetuning.base_trainer import RateByEpoch
from nnssl.finetuning.freezing import Freezing, FrozenParts
from nnssl.finetuning.frozen_parts import ENCODER
from nnssl.finetuning.trainer import PAPER_EPOCHS, PretrainedTrainer


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
    return _warmed_up(
        epoch, num_epochs, peak, warmup_epochs, lambda past, left: 0.5 * (1 + math.cos(math.pi * past / left))
    )


def warmup_poly_rate(epoch: int, num_epochs: int, peak: float, warmup_epochs: int) -> float:
    """Rate that rises linearly for the warm-up and then falls to 0 as nnU-Net's, with an exponent of 0.9."""
    return _warmed_up(epoch, num_epochs, peak, warmup_epochs, lambda past, left: float((1 - past / left) ** 0.9))


def _warmed_up(
    epoch: int, num_epochs: int, peak: float, warmup_epochs: int, falling: Callable[[int, int], float]
) -> float:
    """Linear up to the peak, then the share of it that `falling` gives for the epochs since then, and all of these."""
    if epoch < warmup_epochs:
        return peak * (epoch + 1) / warmup_epochs
    return peak * falling(epoch - warmup_epochs, max(num_epochs - warmup_epochs, 1))


class FlareRecipe(FrozenParts):
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
        optimiser = torch.optim.Adam(self.trained_parameters(), self.initial_lr, weight_decay=self.weight_decay)
        rate = self.initial_lr
        return optimiser, RateByEpoch(optimiser, lambda epoch: warmup_cosine_rate(epoch, self.num_epochs, rate, 0))

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, bool, Any, Any]:
        """Take the patch as it is, unmirrored, where nothing is augmented."""
        rotation, flat, size, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if not self.augments:
            size, axes, self.inference_allowed_mirroring_axes = self.configuration_manager.patch_size, (), None
        return rotation, flat, size, axes

    def get_training_transforms(self, *arguments: Any, **options: Any) -> Any:
        """nnU-Net's augmentation, or those of its transforms that only prepare the label map."""
        kind = nnUNetTrainer if self.augments else nnUNetTrainerNoDA
        return kind.get_training_transforms(*arguments, **options)


class ProbeTrainer(PretrainedTrainer):
    """The backbone stays frozen, bitwise; only the head is trained."""

    always_frozen: ClassVar[Freezing | None] = Freezing((ENCODER,))

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """Freeze first: neither the optimiser nor DistributedDataParallel may know the backbone."""
        self.hold_frozen()
        return super().configure_optimizers()


class FinetuneTrainer(PretrainedTrainer):
    """The backbone stays frozen for a third of the training (15,000 of 45,000 steps), then it is trained as well.

    Its rate rises from a tenth of the head's to the head's within 1,200 steps, in parts of 300 (paper, section 4;
    methods.md 1.5). A shorter training shrinks all this in proportion.
    """

    freezes_itself: ClassVar[bool] = True

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """The head alone; the backbone joins with a group of its own."""
        self.network_module.freeze()
        return super().configure_optimizers()

    def on_train_epoch_start(self) -> None:
        """Also say the rate of the backbone."""
        super().on_train_epoch_start()
        self.print_to_log_file(f"Current learning rate of the backbone: {self.backbone_rate():.2e}")

    def backbone_rate(self) -> float:
        """Rate of the backbone at the next step."""
        return vox2vec_unfreezing_rate(
            PAPER_EPOCHS * self.step // (self.num_epochs * self.num_iterations_per_epoch), head_rate=self.initial_lr
        )

    def train_step(self, batch: dict) -> dict:
        """nnU-Net's step, at the backbone's own rate."""
        rate = self.backbone_rate()
        if rate > 0 and self.network_module.frozen:
            self._unfreeze()
        for group in self.optimizer.param_groups[1:]:
            group["lr"] = rate
        return super().train_step(batch)

    def prepare_optimiser(self, groups: int) -> None:
        """One group is a frozen backbone, two are a trained one."""
        if groups != len(self.optimizer.param_groups):
            self.optimizer, self.lr_scheduler = self.configure_optimizers()
            if groups == 2:
                self._unfreeze()

    def _unfreeze(self) -> None:
        self.optimizer.add_param_group({"params": self.network_module.unfreeze(), "lr": 0.0})
        if isinstance(self.network, DistributedDataParallel):  # it only synchronises what was trained when it was made
            self.network = DistributedDataParallel(self.network.module, device_ids=[self.local_rank])


class ScratchTrainer(PretrainedTrainer):
    """The network, optimiser and number of steps of the fine-tuning, from random weights; nothing is ever frozen."""

    from_scratch = True
