"""How LAPN's authors train downstream networks: optimiser, schedule, length (methods.md 5.4)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA

from nnssl.finetuning.schedules import RateByEpoch, warmup_cosine_rate


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
