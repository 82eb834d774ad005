"""Says in the log of a training that the pseudo Dice does not move, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnssl.data.classes import class_names, foreground_classes

_NOTHING = 0.005  # a Dice below it is shown as .00
_EPOCHS = 3  # a shorter training is no sign of anything
_FOREGROUND = 0.001  # of the voxels of the classes: less is background only


class StuckAlarm(nnUNetTrainer):
    """nnU-Net's trainer; its log warns after a tenth of the training, and at its end, of a pseudo Dice that stays at 0.

    The pseudo Dice must have been 0 for half of the epochs until then, and at least two, on validation patches in which
    some class occurs: one bad epoch, or a fold whose validation has no foreground, is no alarm. The epochs before a
    continued training count. Half way and at the end it also names single classes that were never found: a class can
    stay at 0 while the mean rises.
    """

    num_iterations_per_epoch: int
    # voxels of the foreground by class, in the validation patches of this process
    _truth = _predicted = np.zeros(1)

    def on_validation_epoch_end(self, val_outputs: list[dict]) -> None:
        """As nnU-Net's; warn if a tenth of the training is over."""
        super().on_validation_epoch_end(val_outputs)
        counts = {key: np.sum([of_batch[key] for of_batch in val_outputs], axis=0)
                  for key in ("tp_hard", "fp_hard", "fn_hard")}  # fmt: skip
        self._truth = counts["tp_hard"] + counts["fn_hard"]
        self._predicted = counts["tp_hard"] + counts["fp_hard"]
        epochs = self.current_epoch + 1
        if epochs == max(_EPOCHS, math.ceil(self.num_epochs / 10)) and epochs < self.num_epochs:
            self._warn(epochs)
        if epochs == max(_EPOCHS, math.ceil(self.num_epochs / 2)) and epochs < self.num_epochs:
            self._warn_of_classes(epochs)

    def on_train_end(self) -> None:
        """As nnU-Net's; warn if it is still so."""
        super().on_train_end()
        self._warn(self.current_epoch)
        self._warn_of_classes(self.current_epoch)

    def stuck_advice(self) -> str:
        """What to try where nothing is found, as the end of a sentence."""
        return (f"check that the label maps fit the images, and try another rate, with export "
                f"nnssl_initial_lr={self.initial_lr / 10:g}")  # fmt: skip

    def _warn(self, epochs: int) -> None:
        dice: Sequence[Any] = self.logger.get_value("mean_fg_dice", step=None)[:epochs]
        truth, predicted = float(self._truth.sum()), float(self._predicted.sum())
        if not (truth > 0 and is_stuck(dice)):
            return
        what = "the network predicts background only"
        if predicted > _FOREGROUND * truth:
            what = "the network finds no class where it is"
        self.print_to_log_file(f"WARNING: mean pseudo Dice is still .00 after {epochs:,} of {self.num_epochs:,} epochs "
                               f"({epochs * self.num_iterations_per_epoch:,} steps at a rate of {self.initial_lr:g}): "
                               f"{what}; {self.stuck_advice()}")  # fmt: skip

    def _warn_of_classes(self, epochs: int) -> None:
        if not self._truth.any() or is_stuck(self.logger.get_value("mean_fg_dice", step=None)[:epochs]):
            return  # no epoch in this process; or no class is found, which `_warn` says
        by_class = zip(*self.logger.get_value("dice_per_class_or_region", step=None)[:epochs], strict=True)
        stuck = [number for number, dice in enumerate(by_class) if is_stuck(dice) and self._truth[number] > 0]
        if stuck:
            sought, names = foreground_classes(self.label_manager), class_names(self.dataset_json)
            said = ", ".join(names[sought[number]] for number in stuck)
            self.print_to_log_file(f"WARNING: the pseudo Dice of {said} is still .00 after {epochs:,} of "
                                   f"{self.num_epochs:,} epochs, while others are found; train again, as its fresh "
                                   f"layers then start from other random weights, or longer")  # fmt: skip


# Steps times rate by head: Adam moves a weight by about as much. Below it a class may stay at .00, whatever the steps
# and the rate (hippocampi, vox2vec and pimpic, 20 to 640 steps at 1e-4 to 1e-2; docs/tracking.md).
LEAST_MOVE = {"linear": 0.3, "nonlinear": 0.045}
_SHORT_RATE = 1e-2


def head_warning(head: str, steps: int, rate: float) -> str | None:
    """What to say of a fresh head that Adam, in some steps at a constant rate, cannot move far enough.

    Returns:
        A sentence with the fix; None where it can, or where nothing is known of the head.
    """
    move, least = steps * rate, LEAST_MOVE.get(head, 0.0)
    if move >= least:
        return None
    fix = f"export nnssl_initial_lr={_SHORT_RATE:g}" if rate < _SHORT_RATE and steps * _SHORT_RATE >= least else (
        f"train {math.ceil(least / move)} times as long (export nnssl_num_epochs)")  # fmt: skip
    return (f"{steps:,} steps at a rate of {rate:g} move a weight of the {head} head by about {move:.2g}, and below "
            f"{least:g} a class may stay at a Dice of .00; {fix}")  # fmt: skip


def is_stuck(dice: Sequence[float]) -> bool:
    """Whether the mean pseudo Dice of the epochs so far was 0 in the second half of them, and in two at least.

    Epochs without a class in the validation patches (NaN) do not count.
    """
    known = [float(value) for value in dice[min(len(dice) // 2, len(dice) - 2) :] if not math.isnan(value)]
    return len(dice) >= _EPOCHS and len(known) >= 2 and max(known) < _NOTHING
