"""How the plans' whole segmentation network is trained: one class for each recipe."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import nn

from nnssl.core.errors import UserError
from nnssl.core.names import shown
from nnssl.finetuning.base_trainer import OUTPUT_FACTOR, RATE, RateByEpoch, above_zero, apply_settings
from nnssl.finetuning.freezing import FrozenParts
from nnssl.finetuning.output_bias import RAREST, class_frequencies, start_at_frequencies
from nnssl.finetuning.recipes import warmup_cosine_rate, warmup_poly_rate
from nnssl.finetuning.segmentation import UNET
from nnssl.finetuning.settings import given
from nnssl.finetuning.start import Head, Start
from nnssl.finetuning.trainer import PretrainedTrainer


class UNetTrainer(PretrainedTrainer):
    """The plans' segmentation network: the pretrained part loaded, the rest fresh, everything trained at once.

    Mirroring stays on, as the network can get used to it. Iterations are nnU-Net's 250 an epoch; deep supervision is
    off, as in both papers.
    """

    head: ClassVar[Head] = UNET
    mirrors: ClassVar[bool] = True
    steps: ClassVar[int] = 250

    def idle_parameters(self) -> Iterable[nn.Parameter]:
        """In several processes, layers for deep supervision that nothing reads; their place in the optimiser stays."""
        if not self.is_ddp or self.enable_deep_supervision:
            return ()
        idle: nn.Module = self.plain_network.decoder.seg_layers[:-1]
        return idle.parameters()


class WarmupCosineTrainer(UNetTrainer):
    """AdamW with a decay of 1e-5; the rate rises linearly in the first epochs, then falls as half a cosine."""

    decay: ClassVar[float] = 1e-5
    warmup: ClassVar[int] = 10  # epochs for one of warm-up

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """AdamW over everything."""
        optimiser = torch.optim.AdamW(self.parameter_groups(), self.initial_lr, weight_decay=self.weight_decay)
        warmup = self.num_epochs // self.warmup
        return optimiser, RateByEpoch(
            optimiser, lambda epoch: warmup_cosine_rate(epoch, self.num_epochs, self.initial_lr, warmup)
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All parameters, at one rate."""
        return [{"params": self.trained_parameters()}]


class VoCoTrainer(WarmupCosineTrainer):
    """A rate of 3e-4; a tenth of the 1,000 epochs is warm-up (methods.md 2.5)."""

    epochs: ClassVar[int] = 1000


Recipe = Literal["adamw", "sgd"]


class UNetFinetuneTrainer(VoCoTrainer):
    """The plans' whole network from a pretraining of any method, by one of two recipes.

    `adamw` is `VoCoTrainer`, but a training of fewer than 1,000 steps has a rate of 1e-3, and 10 times that in the
    output layers: AdamW moves a weight by no more than the rate in a step, and a class whose first weights are negative
    would stay lost, as the features are mostly positive. `nnssl_output_factor` sets another factor.

    `sgd` is nnU-Net's optimiser (momentum 0.99, Nesterov, decay 3e-5) at a rate of 1e-3: of the 1,000 epochs the first
    50 are linear warm-up, then the rate falls to 0 as nnU-Net's. A training of another length warms up for a twentieth
    of its epochs, rounded down.

    The variable `nnssl_recipe` chooses, else `plans["nnssl"]["recipe"]`. A continued training keeps its recipe. The
    outputs start at the classes' frequencies in the training cases (`nnssl.finetuning.output_bias`).
    """

    default_recipe: ClassVar[Recipe] = "adamw"
    short_rate: ClassVar[float] = 1e-3  # of adamw
    short_steps: ClassVar[int] = 1000
    short_factor: ClassVar[float] = 10.0  # of the output layers' rate
    sgd_rate: ClassVar[float] = 1e-3
    sgd_decay: ClassVar[float] = 3e-5
    sgd_warmup: ClassVar[int] = 20  # epochs for one of warm-up
    recipe: Recipe
    output_factor: float = 1.0

    def set_up(self) -> None:
        """Set the rate and the decay of the recipe as well.

        Raises:
            UserError: there is no such recipe; or as of `apply_settings`.
        """
        super().set_up()
        self._planned = dict(self._block)
        self._take(_recipe(given("recipe", self._planned) or self.default_recipe))

    def initialize(self) -> None:
        """Also keep the recipe and its rate in the plans, and so in every checkpoint."""
        self._block.update(recipe=self.recipe, initial_lr=self.initial_lr)
        outputs = f", {self.output_factor:g} times that in the output layers" if self.output_factor != 1 else ""
        self.print_to_log_file(f"Recipe: {self.recipe}, at a rate of {self.initial_lr:g}{outputs}")
        super().initialize()

    def _fill(self, start: Start) -> None:
        super()._fill(start)
        training, _ = self.get_tr_and_val_datasets()
        manager = self.label_manager
        frequencies = class_frequencies(training, manager)
        shares = start_at_frequencies(self.plain_network.decoder.seg_layers, frequencies, manager.has_regions)
        self.print_to_log_file(f"The outputs start at the classes' frequencies, at least {RAREST:g}: "
                               f"{', '.join(f'{share:.3f}' for share in shares)}")  # fmt: skip

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
        if given(RATE, self._planned) is None:
            self.initial_lr = float(began.get(RATE, self.sgd_rate if recipe == "sgd" else self.rate))

    def _take(self, recipe: Recipe) -> None:
        self.recipe = recipe
        sgd = recipe == "sgd"
        self.initial_lr = self.sgd_rate if sgd else self.rate
        self.weight_decay = self.sgd_decay if sgd else self.decay
        apply_settings(self, self._planned)
        steps = self.num_epochs * self.num_iterations_per_epoch
        short = not sgd and steps < self.short_steps
        if short and given(RATE, self._planned) is None:
            self.initial_lr = self.short_rate
        factor = given(OUTPUT_FACTOR, self._planned)
        self.output_factor = (
            (self.short_factor if short else 1.0) if factor is None else above_zero(OUTPUT_FACTOR, factor)
        )

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The output layers apart where they have another rate."""
        trained = self.trained_parameters()
        if self.output_factor == 1:
            return [{"params": trained}]
        output = {id(p) for p in self.plain_network.decoder.seg_layers.parameters()}
        return [
            {"params": [p for p in trained if id(p) not in output]},
            {"params": [p for p in trained if id(p) in output], "rate_factor": self.output_factor},
        ]

    def prepare_optimiser(self, groups: int) -> None:
        """As many groups as the checkpoint's, whose factor is restored; trainings of earlier versions have one."""
        if groups != len(self.optimizer.param_groups):
            self.output_factor = self.short_factor if groups > 1 else 1.0
            self.optimizer, self.lr_scheduler = self.configure_optimizers()

    def stuck_advice(self) -> str:
        """Also name the recipe that leaves the background sooner."""
        advice = super().stuck_advice()
        return f"{advice}, or by the other recipe (export nnssl_recipe=adamw)" if self.recipe == "sgd" else advice

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """Those of the recipe, over everything."""
        if self.recipe == "adamw":
            return super().configure_optimizers()
        optimiser = torch.optim.SGD(
            self.parameter_groups(), self.initial_lr, momentum=0.99, nesterov=True, weight_decay=self.weight_decay
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


class StockTrainer(UNetTrainer):
    """nnU-Net's own recipe: SGD at 1e-2 with Nesterov's momentum of 0.99 and a decay of 3e-5, deep supervision.

    The rate falls as (1 - epoch / 1,000)^0.9; an epoch has 250 steps.
    """

    rate: ClassVar[float] = 1e-2
    decay: ClassVar[float] = 3e-5
    epochs: ClassVar[int] = 1000

    def set_up(self) -> None:
        """As every trainer of a whole network, with deep supervision."""
        super().set_up()
        self.enable_deep_supervision = True

    def stuck_advice(self) -> str:
        """Name the recipe that leaves the background sooner."""
        other = "nnUNetTrainer_SSLUNetFinetune and nnssl_checkpoint=random" if self.from_scratch else (
            "nnUNetTrainer_SSLUNetFinetune")  # fmt: skip
        return f"train longer (export nnssl_num_epochs={3 * self.num_epochs}), or with -tr {other}"

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        """nnU-Net's."""
        return FrozenParts.configure_optimizers(self)


class NNFormerTrainer(StockTrainer):
    """nnFormer is trained as nnU-Net (Zhou et al., arXiv 2109.03201; methods.md 4.5)."""


class UNetScratchTrainer(StockTrainer):
    """The plans' whole network from random weights, for a comparison with fine-tuning at the same number of steps."""

    from_scratch = True
