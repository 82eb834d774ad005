"""The first steps of a fine-tuning, with one change to the segmentation layers at a time.

    python benchmarks/first_steps.py 17 PLANS RUN -f 0 -starts 4 -changes none small against_1 against_1+rate_10

RUN is a pretraining's folder, or random. A start is a draw of the fresh layers' weights, by its number. All lines have
the same batches, and those of a start the same weights, but for the change:

    none        as nnU-Net draws them
    small       weights of the segmentation layers times 0.02
    against_N   of class N all negative, so that features, mostly positive, speak against it
    rate_N      N times the rate of everything else

The Dice is the pseudo Dice of six validation batches, after half of the steps and all of them. nnU-Net's folders and
the length that the schedule of the rate is for (`nnssl_num_epochs`, ...) are the environment's.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.run.run_training import get_trainer_from_args

COLUMNS = ("run", "fold", "start", "change", "step", "training_loss", "class", "dice")
TRAINER, VALIDATION = "nnUNetTrainer_SSLUNetFinetune", 6
SMALL = 0.02
_BATCHES = 1000  # the batches' seed, other than that of any start
Batches = tuple[list[Any], list[Any]]  # of training and of validation


def seed_all(seed: int) -> None:
    """Seed what draws weights and batches."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def made(arguments: argparse.Namespace, start: int) -> Any:
    """A trainer whose fresh layers are drawn by the number of the start."""
    os.environ["nnssl_checkpoint"] = arguments.run
    os.environ["nnUNet_results"] = tempfile.mkdtemp()  # for its log
    seed_all(start)
    trainer = get_trainer_from_args(arguments.dataset, arguments.c, arguments.f, TRAINER, arguments.plans,
                                    device=torch.device(arguments.device))  # fmt: skip
    trainer.disable_checkpointing = True
    trainer.initialize()
    return trainer


def drawn(arguments: argparse.Namespace) -> Batches:
    """Batches for all lines."""
    trainer = made(arguments, 0)
    seed_all(_BATCHES + arguments.f)
    trainer.on_train_start()
    training = [next(trainer.dataloader_train) for _ in range(arguments.steps)]
    return training, [next(trainer.dataloader_val) for _ in range(VALIDATION)]


def change_outputs(trainer: Any, changes: Sequence[str]) -> float:
    """Change the segmentation layers; returns their rate, as a multiple of that of everything else."""
    layers, factor = trainer.plain_network.decoder.seg_layers, 1.0
    for kind, _, number in (change.partition("_") for change in changes):
        with torch.no_grad():
            for layer in layers:
                if kind == "small":
                    layer.weight.mul_(SMALL)
                elif kind == "against":
                    layer.weight[int(number)] = -layer.weight[int(number)].abs()
        factor = float(number) if kind == "rate" else factor
    own = {id(parameter): parameter for parameter in layers.parameters()}
    others = [p for p in trainer.plain_network.parameters() if p.requires_grad and id(p) not in own]
    groups = [{"params": others}, {"params": list(own.values())}]
    trainer.optimizer = torch.optim.AdamW(groups, trainer.initial_lr, weight_decay=trainer.weight_decay)
    trainer.lr_scheduler.optimiser = trainer.optimizer
    return factor


def pseudo_dice(trainer: Any, validation: list[Any]) -> np.ndarray:
    """(classes,) over all batches; 0 where a class is neither there nor found."""
    trainer.network.eval()
    with torch.no_grad():
        found = [trainer.validation_step(batch) for batch in validation]
    trainer.network.train()
    tp, fp, fn = (np.sum([batch[key] for batch in found], axis=0) for key in ("tp_hard", "fp_hard", "fn_hard"))
    dice: np.ndarray = 2 * tp / np.maximum(2 * tp + fp + fn, 1)
    return dice


def follow(trainer: Any, factor: float, batches: Batches) -> list[tuple[int, float, np.ndarray]]:
    """Train; step, mean training loss since the last line, and pseudo Dice, at each half of the steps."""
    training, validation = batches
    trainer.network.train()
    losses: list[float] = []
    lines = []
    for number, batch in enumerate(training):
        if number % trainer.num_iterations_per_epoch == 0:
            trainer.current_epoch = number // trainer.num_iterations_per_epoch
            trainer.lr_scheduler.step(trainer.current_epoch)
            trainer.optimizer.param_groups[1]["lr"] *= factor
        losses.append(float(trainer.train_step(batch)["loss"]))
        if number + 1 in (len(training) // 2, len(training)):
            lines.append((number + 1, float(np.mean(losses)), pseudo_dice(trainer, validation)))
            losses = []
    return lines


def parser() -> argparse.ArgumentParser:
    """The script's arguments."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("dataset", help="labelled dataset")
    p.add_argument("plans", help="of nnssl_transfer")
    p.add_argument("run", metavar="RUN")
    p.add_argument("-c", default="3d_fullres")
    p.add_argument("-f", type=int, default=0, help="fold")
    p.add_argument("-starts", type=int, default=5)
    p.add_argument("-changes", nargs="+", default=["none"], metavar="CHANGE[+CHANGE]")
    p.add_argument("-steps", type=int, default=80)
    p.add_argument("-device", default="cpu")
    p.add_argument("-csv", type=Path, help="lines are added to it (default: they are printed)")
    return p


def main() -> None:
    """Print or add one line for each start, change, half of the steps and class."""
    arguments = parser().parse_args()
    stream = sys.stdout if arguments.csv is None else arguments.csv.open("a", newline="")
    writer = csv.writer(stream, lineterminator="\n")
    if arguments.csv is None or arguments.csv.stat().st_size == 0:
        writer.writerow(COLUMNS)
    batches = drawn(arguments)
    for start in range(arguments.starts):
        for change in arguments.changes:
            trainer = made(arguments, start)
            factor = change_outputs(trainer, change.split("+"))
            for step, loss, dice in follow(trainer, factor, batches):
                for number, value in enumerate(dice, start=1):
                    writer.writerow([Path(arguments.run).name, arguments.f, start, change, step, f"{loss:.4f}", number,
                                     f"{value:.4f}"])  # fmt: skip
            stream.flush()


if __name__ == "__main__":
    main()
