"""What a pretraining leaves: its folder, and what to type next."""

from __future__ import annotations

import logging
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnssl.checkpoints.pretrained import finished_pretrainings
from nnssl.core.errors import UserError
from nnssl.data.folders import dataset_id, existing_datasets
from nnssl.data.guard import Images, names_of_channels, other_intensities
from nnssl.data.next_lines import (
    STOCK_CONFIGURATION,
    STOCK_PLANS,
    Way,
    command,
    commands_of,
    dataset_word,
    first_fold,
    plan_lines,
    rendered,
    train_line,
    trainer_for,
)
from nnssl.data.raw import number_of_labels, read_dataset_json
from nnssl.pretraining.setup import Setup

TARGET = "TARGET"  # where only the user knows which labelled dataset is meant

log = logging.getLogger("nnssl")

if TYPE_CHECKING:
    _Path = Path
else:
    _Path = type(Path())  # before Python 3.12 `Path` itself cannot be subclassed


class FinishedRun(_Path):
    """Folder of a finished run: a `Path`, as `pretrain` has always returned.

    Attributes:
        next: lines to type next, as they are printed. Paths that are made from this one, such as its files, have none.
    """

    next: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles keep the lines."""
        return _with_lines, (str(self), self.next)


def _with_lines(folder: str | Path, lines: tuple[str, ...]) -> FinishedRun:
    run = FinishedRun(folder)
    run.next = lines
    return run


def finished_run(setup: Setup, results: Path, device: str) -> FinishedRun:
    """Say what to type after a run, and return its folder with these lines.

    Args:
        setup: of the run.
        results: nnUNet_results.
        device: that it ran on.
    """
    ways = ways_on(setup, results, device)
    log.info(rendered(ways))
    return _with_lines(setup.folder, commands_of(ways))


def ways_on(setup: Setup, results: Path, device: str) -> list[Way]:
    """From a finished run to a training: by transferred plans, which is recommended, or on nnU-Net's own.

    The labelled dataset is that of the probe, or the only one of nnUNet_raw whose images are of the same modality.
    """
    source, plans, method = setup.folder.parents[1].name, setup.plans["plans_name"], setup.method
    target = setup.probe.folder.name if setup.probe else _only_labelled(setup)
    home = Path(os.environ["nnUNet_preprocessed"]) / target
    labels = number_of_labels(Path(os.environ["nnUNet_raw"]) / target)
    fold = "0" if target == TARGET else first_fold(labels, home)
    others = {file for file in finished_pretrainings(results) if file.parent != setup.folder}
    alike = others.intersection(finished_pretrainings(results, method, source))  # nnssl_transfer must be told which
    which = ["-p", plans, "-c", setup.configuration, "-f", setup.fold] if alike else []
    transferred = (
        command("nnssl_transfer", "-s", dataset_word(source), "-t", dataset_word(target), "-m", method, *which),
        train_line(target, setup.configuration, fold, trainer=trainer_for(method), device=device,
                   plans=f"{plans}From{dataset_id(source)}_{method}"),
    )  # fmt: skip
    train = train_line(target, STOCK_CONFIGURATION, fold, trainer=trainer_for(method, any_plans=True), device=device)
    if others:
        train = f"nnssl_checkpoint={shlex.quote(str(setup.folder))} {train}"
    planned = (home / f"{STOCK_PLANS}.json").is_file()
    named = " (TARGET: your labelled dataset)" if target == TARGET else ""
    return [
        Way(transferred, f"recommended: give {target} the spacing, intensities and network of this pretraining{named}"),
        Way((train,) if planned else (*plan_lines(target), train),
            f"train on nnU-Net's own plans of {target}" + ("" if planned else ", which must be made first")),
    ]  # fmt: skip


def _only_labelled(setup: Setup) -> str:
    raw = Path(os.environ["nnUNet_raw"])
    given = Images("", names_of_channels(setup.dataset_json))
    fitting = []
    for name in existing_datasets():
        if not number_of_labels(raw / name):
            continue
        try:
            own = Images(name, names_of_channels(read_dataset_json(raw / name)))
            if other_intensities(given, own, by_scheme=True) is None:
                fitting.append(name)
        except UserError:  # other numbers of channels
            continue
    return fitting[0] if len(fitting) == 1 else TARGET
