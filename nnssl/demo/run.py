"""The demo: it draws data, runs the commands that a user would type, and reports the results."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path

from nnssl.benchmarking.workflow import TaskFailed, duration, last_lines, run_task
from nnssl.core.distributed import resolve_device
from nnssl.core.errors import UserError
from nnssl.demo.gain import Gain, case_dice
from nnssl.demo.phantom import LABELLED, UNLABELLED, write_labelled, write_unlabelled
from nnssl.demo.recipes import head_of
from nnssl.demo.report import Score, all_scores, remove_report, write_report
from nnssl.demo.steps import RANDOM, Folders, Record, Step, demo_steps
from nnssl.methods.registry import method_names

_MOST_SEEDS = 100
_SCANS, _TRAINING, _VALIDATION, _TEST = 20, 3, 1, 6

log = logging.getLogger("nnssl")


def run_demo(
    folder: Path | str, method: str = "vox2vec", seeds: Sequence[int] = (0,), device: str | None = None
) -> list[Score]:
    """Pretrain on drawn torso CTs, train with a few labels, predict, evaluate, and compare with random weights.

    Every command is logged before it runs. Finished steps in the same folder are kept, so that an interrupted demo
    continues; `report.md`, `dice.csv` and `comparison.png` are written at the end.

    Args:
        folder: made if it is missing; it contains all three nnU-Net folders.
        method: of the pretraining.
        seeds: one pretraining and two trainings for each; the data are the same.
        device: "cuda" or "cpu"; None: cuda where PyTorch sees a card. The sizes are for two CPU cores.

    Returns:
        Dice of every organ and their mean, for each seed, with pretrained and with random weights.

    Raises:
        UserError: the folder has other content, or a demo with other settings; or a command fails.
    """
    _check(method, seeds)
    device = resolve_device(device)
    head, seeds = head_of(method), tuple(seeds)
    settings = {"method": method, "device": device, "head": head.name}
    record = Record.open(Path(folder).absolute(), settings)
    remove_report(record.home)  # an earlier report must not pass for this demo's
    steps = demo_steps(record, method, seeds, device)
    why = head.why.format(method=method)
    log.info(f"{method}, with {head.name}: {why}.\n")
    _make_data(steps[0].folders, record)
    for number, step in enumerate(steps, 1):
        log.info(f"\n[{number}/{len(steps)}] {step.title}")
        _run(step)
    dice = ([case_dice(Folders(record.home, s).summary(backbone)) for s in seeds] for backbone in (method, RANDOM))
    gain = Gain(method, _TRAINING, *dice)
    scores = all_scores(gain, seeds)
    commands = [(step.line(), record.seconds[step.key]) for step in steps]
    caption = f"{head.name.capitalize()}, trained with {_TRAINING} labelled scans, Dice on {_TEST} test scans"
    report = write_report(steps[0].folders, gain, scores, caption, why, commands)
    total = record.seconds["data"] + sum(seconds for _, seconds in commands)
    log.info(f"\neverything together took {duration(total)}\n\n{report}")
    return scores


def _check(method: str, seeds: Sequence[int]) -> None:
    if method not in method_names():
        raise UserError(f"there is no method {method!r}; choose one of: {', '.join(method_names())}")
    if not seeds or len(seeds) > _MOST_SEEDS or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UserError(f"the demo needs one to {_MOST_SEEDS} different seeds, such as -seeds 3 for 0, 1 and 2")


def _run(step: Step) -> None:
    if step.state() == "finished":
        log.info(f"$ {step.line()}\n  done before, in {duration(step.record.seconds[step.key])}")
        return
    try:
        run_task(step)
    except TaskFailed as error:
        raise UserError(f"{step.command[0]} ended with exit code {error.code}; fix the cause and run the same "
                        f"nnssl_demo command again to continue. The last lines of {step.log}:\n"
                        f"{last_lines(step.log)}") from error  # fmt: skip


def _make_data(folders: Folders, record: Record) -> None:
    """Draw both raw datasets, and write the splits that leave few labelled scans for the training."""
    log.info(
        f"Draw torso CTs, in nnU-Net's raw format:\n"
        f"  {UNLABELLED}: {_SCANS} scans without labels\n"
        f"  {LABELLED}: {_TRAINING} labelled scans to train with and {_VALIDATION} to validate (splits_final.json says "
        f"which), {_TEST} to test"
    )
    if "data" not in record.finished:
        began = time.monotonic()
        write_unlabelled(folders.raw, _SCANS)
        dataset = write_labelled(folders.raw, _TRAINING + _VALIDATION, _TEST)
        cases = sorted(file.name.removesuffix(".nii.gz") for file in (dataset / "labelsTr").iterdir())
        folders.splits.parent.mkdir(parents=True, exist_ok=True)
        folders.splits.write_text(json.dumps([{"train": cases[:_TRAINING], "val": cases[_TRAINING:]}], indent=2))
        record.note("data", time.monotonic() - began, anew=True, finished=True)
    for name, value in folders.environment().items():
        log.info(f"$ export {name}={value}")
