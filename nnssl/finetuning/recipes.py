"""How the papers train: rates, optimisers and what is frozen; what `nnssl_trainers` is made of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, get_args

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA
from torch.nn.parallel import DistributedDataParallel

from nnssl.core.errors import UserError
from nnssl.core.names import shown
from nnssl.finetuning.base_trainer import RateByEpoch, apply_settings, given
from nnssl.finetuning.segmentation import UNET
from nnssl.finetuning.start import Head
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

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """Freeze first: neither the optimiser nor DistributedDataParallel may know the backbone."""
        self.network_module.freeze()
        return super().configure_optimizers()


class FinetuneTrainer(PretrainedTrainer):
    """The backbone stays frozen for a third of the training (15,000 of 45,000 steps), then it is trained as well.

    Its rate rises from a tenth of the head's to the head's within 1,200 steps, in parts of 300 (paper, section 4;
    methods.md 1.5). A shorter training shrinks all this in proportion.
    """

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """The head alone; the backbone joins with a group of its own."""
        self.network_module.freeze()
        return super().configure_optimizers()

    def on_train_epoch_start(self) -> None:
        """Also count the steps of the epoch."""
        super().on_train_epoch_start()
        self._iteration = 0
        self.print_to_log_file(f"Current learning rate of the backbone: {self.backbone_rate():.2e}")

    def backbone_rate(self) -> float:
        """Rate of the backbone at the next step."""
        step = self.current_epoch * self.num_iterations_per_epoch + self._iteration
        return vox2vec_unfreezing_rate(
            PAPER_EPOCHS * step // (self.num_epochs * self.num_iterations_per_epoch), head_rate=self.initial_lr
        )

    def train_step(self, batch: dict) -> dict:
        """nnU-Net's step, at the backbone's own rate."""
        rate = self.backbone_rate()
        if rate > 0 and self.network_module.frozen:
            self._unfreeze()
        for group in self.optimizer.param_groups[1:]:
            group["lr"] = rate
        self._iteration += 1
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


class UNetTrainer(PretrainedTrainer):
    """The plans' segmentation network: the pretrained part loaded, the rest fresh, everything trained at once.

    Mirroring stays on, as the network can get used to it. Iterations are nnU-Net's 250 an epoch; deep supervision is
    off, as in both papers.
    """

    head: ClassVar[Head] = UNET
    mirrors: ClassVar[bool] = True
    steps: ClassVar[int] = 250

    def initialize(self) -> None:
        """As its base; DistributedDataParallel must not wait for gradients of layers for deep supervision."""
        super().initialize()
        if isinstance(self.network, DistributedDataParallel) and not self.enable_deep_supervision:
            self.network_module.decoder.seg_layers[:-1].requires_grad_(False)  # their place in the optimiser stays
            self.network = DistributedDataParallel(self.network.module, device_ids=[self.local_rank])


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


Recipe = Literal["adamw", "sgd"]


class UNetFinetuneTrainer(VoCoTrainer):
    """The plans' whole network from a pretraining of any method, by one of two recipes.

    `adamw` is `VoCoTrainer`. `sgd` is nnU-Net's optimiser (momentum 0.99, Nesterov, decay 3e-5) at a rate of 1e-3: of
    the 1,000 epochs the first 50 are linear warm-up, then the rate falls to 0 as nnU-Net's. A training of another
    length warms up for a twentieth of its epochs, rounded down.

    The variable `nnssl_recipe` chooses, else `plans["nnssl"]["recipe"]`. A continued training keeps its recipe.
    """

    default_recipe: ClassVar[Recipe] = "adamw"
    sgd_rate: ClassVar[float] = 1e-3
    sgd_decay: ClassVar[float] = 3e-5
    sgd_warmup: ClassVar[int] = 20  # epochs for one of warm-up
    recipe: Recipe

    def set_up(self) -> None:
        """Set the rate and the decay of the recipe as well.

        Raises:
            UserError: there is no such recipe; or as of `apply_settings`.
        """
        super().set_up()
        self._planned = dict(self._block)
        self._take(_recipe(given("recipe", self._planned) or self.default_recipe))

    def initialize(self) -> None:
        """Also keep the recipe in the plans, and so in every checkpoint."""
        self._block["recipe"] = self.recipe
        self.print_to_log_file(f"Recipe: {self.recipe}")
        super().initialize()

    def take_up(self, began: dict[str, Any]) -> None:
        """Go on with the recipe of the checkpoint; those from before there were two are `adamw`.

        Raises:
            UserError: another recipe is asked for.
        """
        recipe, asked = _recipe(began.setdefault("recipe", "adamw")), given("recipe", self._planned)
        if asked not in (None, recipe):
            raise UserError(f"the training in {self.output_folder} began with the recipe {recipe}, not {asked}; type: "
                            f"export nnssl_recipe={recipe}")  # fmt: skip
        self._take(recipe)

    def _take(self, recipe: Recipe) -> None:
        self.recipe = recipe
        sgd = recipe == "sgd"
        self.initial_lr = self.sgd_rate if sgd else self.rate
        self.weight_decay = self.sgd_decay if sgd else self.decay
        apply_settings(self, self._planned)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """Those of the recipe, over everything."""
        if self.recipe == "adamw":
            return super().configure_optimizers()
        trained = [p for p in self.network_module.parameters() if p.requires_grad]
        optimiser = torch.optim.SGD(
            trained, self.initial_lr, momentum=0.99, nesterov=True, weight_decay=self.weight_decay
        )
        warmup = self.num_epochs // self.sgd_warmup
        return optimiser, RateByEpoch(
            optimiser, lambda epoch: warmup_poly_rate(epoch, self.num_epochs, self.initial_lr, warmup)
        )


def _recipe(name: str) -> Recipe:
    for recipe in get_args(Recipe):
        if name == recipe:
            return recipe
    raise UserError(f"nnssl_recipe takes {' or '.join(get_args(Recipe))}, not {shown(name)}; type: export "
                    f"nnssl_recipe=sgd")  # fmt: skip


class MaskedTrainer(WarmupCosineTrainer):
    """What UNETR and SwinUNETR are trained with, which Alice's paper refers to (methods.md 4.5).

    Rate 1e-4, a hundredth of the epochs is warm-up, as the authors' code has it for both (MONAI's
    research-contributions, BTCV). Its 5,000 epochs of 24 volumes are 120,000 steps: 500 epochs of 250 here. The plans'
    U-Net, which the paper does not use, is trained in the same way.
    """

    rate: ClassVar[float] = 1e-4
    epochs: ClassVar[int] = 500
    warmup: ClassVar[int] = 100


class NNFormerTrainer(UNetTrainer):
    """What nnFormer is trained with, nnU-Net's own recipe (Zhou et al., arXiv 2109.03201; methods.md 4.5).

    SGD at 1e-2 with Nesterov's momentum of 0.99 and a decay of 3e-5, the rate falls as (1 - epoch / 1,000)^0.9, and
    deep supervision is on.
    """

    rate: ClassVar[float] = 1e-2
    decay: ClassVar[float] = 3e-5
    epochs: ClassVar[int] = 1000

    def set_up(self) -> None:
        """As every trainer of a whole network, with deep supervision."""
        super().set_up()
        self.enable_deep_supervision = True

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """nnU-Net's."""
        return nnUNetTrainer.configure_optimizers(self)
