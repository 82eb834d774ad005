"""Stops a training whose validation loss no longer falls, and ends with its best weights (methods.md 3.5)."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnssl.checkpoints.files import BEST, LATEST
from nnssl.data.trusted import read_nnunet_checkpoint


class Stopped(Exception):
    """Leaves nnU-Net's loop over the epochs."""


class EarlyStopping(nnUNetTrainer):
    """nnU-Net's trainer; with `patience` it ends after that number of epochs without a lower validation loss.

    `checkpoint_best.pth` is then the epoch with the lowest validation loss, not nnU-Net's best pseudo Dice, and
    `checkpoint_final.pth` has its weights, whether the training stopped early or not. The losses are those of the
    checkpoint that a continued training goes on with; one that stopped trains no further, unless the patience grew.
    """

    patience: int | None = None  # epochs
    network: Any
    _counted_from: int = 0  # the first epoch whose weights may be the best: those before were not kept

    def run_training(self) -> None:
        """As nnU-Net's, with an end before the last epoch."""
        try:
            super().run_training()
        except Stopped:
            self.on_train_end()

    def on_train_start(self) -> None:
        """As nnU-Net's; a continued training looks for the best weights so far.

        Raises:
            Stopped: the training had stopped before.
        """
        super().on_train_start()
        if self.patience is None or self.current_epoch == 0:
            return
        best = self.best_epoch()
        if best == self.current_epoch - 1:
            self._keep_best()
        elif best is not None and self._kept_epoch() != best:
            self._counted_from = self.current_epoch
            self.print_to_log_file(f"The weights with the lowest validation loss so far (epoch {best}) were not kept: "
                                   f"early stopping counts from epoch {self.current_epoch} on")  # fmt: skip
        self._stop_if_due()

    def on_epoch_end(self) -> None:
        """As nnU-Net's; keep the best weights.

        Raises:
            Stopped: the patience is over.
        """
        super().on_epoch_end()
        if self.patience is None:
            return
        if self.best_epoch() == self.current_epoch - 1:
            self.print_to_log_file("The lowest validation loss so far: kept as the best checkpoint")
            self._keep_best()
        self._stop_if_due()

    def save_checkpoint(self, filename: str) -> None:
        """As nnU-Net's, but with patience its best pseudo Dice is not what is best."""
        if self.patience is None or Path(filename).name != BEST:
            super().save_checkpoint(filename)

    def on_train_end(self) -> None:
        """As nnU-Net's, with the best weights in the final checkpoint and in the validation that follows."""
        if self.patience is not None:
            self._take_best()
        super().on_train_end()

    def best_epoch(self) -> int | None:
        """The epoch with the lowest validation loss, from 0, among those that count; None if none has a number."""
        losses = self.logger.get_value("val_losses", step=None)[: self.current_epoch]
        counted = [(loss, e) for e, loss in enumerate(losses) if e >= self._counted_from and not math.isnan(loss)]
        return min(counted)[1] if counted else None

    def _stop_if_due(self) -> None:
        best = self.best_epoch()
        since = self.current_epoch - (self._counted_from if best is None else best + 1)
        if self.patience is not None and since >= self.patience:
            lowest = "" if best is None else f"; the lowest was that of epoch {best}"
            self.print_to_log_file(f"Early stopping after epoch {self.current_epoch - 1}: no lower validation loss for "
                                   f"{since} epochs (patience {self.patience}){lowest}")  # fmt: skip
            raise Stopped

    def _keep_best(self) -> None:
        """Write the best checkpoint at once; an older latest one goes with that, as `--c` would prefer it."""
        latest = Path(self.output_folder) / LATEST
        self.current_epoch -= 1  # as nnU-Net does where it saves after the epoch has ended
        super().save_checkpoint(str(latest))
        self.current_epoch += 1
        if self.local_rank == 0 and not self.disable_checkpointing:
            os.replace(latest, latest.with_name(BEST))

    def _kept_epoch(self) -> int | None:
        file = Path(self.output_folder) / BEST
        return int(read_nnunet_checkpoint(file)["current_epoch"]) - 1 if file.is_file() else None

    def _take_best(self) -> None:
        best, file = self.best_epoch(), Path(self.output_folder) / BEST
        if self.is_ddp:
            torch.distributed.barrier()
        if best is None or self.disable_checkpointing or not file.is_file():  # the file may be of an earlier training
            self.print_to_log_file("No best checkpoint was kept: the final weights are those of the last epoch")
            return
        content = read_nnunet_checkpoint(file)
        if content["current_epoch"] - 1 == best:
            module = self.network.module if self.is_ddp else self.network
            getattr(module, "_orig_mod", module).load_state_dict(content["network_weights"])
            self.print_to_log_file(f"The final weights are those of epoch {best}, which has the lowest validation loss")
