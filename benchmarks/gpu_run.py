"""A short pretraining on phantoms through the real loop, with the online probe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu_setups import config_of, make_setup, plans_of, spacing_of
from gpu_step import StepResult
from gpu_volumes import write_volumes

from nnssl.data.loader import number_of_workers
from nnssl.demo.anatomy import LABELS
from nnssl.demo.phantom import Torso
from nnssl.pretraining.loop import Pretraining
from nnssl.pretraining.metrics import read_rows
from nnssl.pretraining.probe_data import ProbeData
from nnssl.pretraining.reporting import METRICS

_EPOCHS = 8


def short_run(
    alone: StepResult, torsos: list[Torso], labelled: int, device: torch.device, seconds: float, small: bool, root: Path
) -> dict[str, Any]:
    """Pretrain for about `seconds`, and return the epochs' rows with the settings of the run.

    Args:
        alone: a step of the method, measured; its batch is taken.
        torsos: the last `labelled` of them are the probe's: two thirds for its heads, the others for the Dice.
        labelled: at least 2.
        device: to train on.
        seconds: of training, about; volumes and files take more.
        small: toy size.
        root: an empty folder.
    """
    method, workers = alone.method, number_of_workers()
    plans = plans_of(method, small)
    epochs, steps = _schedule(seconds, max(alone.step, alone.batch * alone.sampling / max(1, workers)), small)
    shrunk = {} if alone.crops is None else {"crops": alone.crops}
    config = config_of(
        method, plans, small, num_epochs=epochs, steps_per_epoch=steps, val_steps_per_epoch=0,
        save_every_epochs=epochs, batch_size=alone.batch, **shrunk,
    )  # fmt: skip
    config = replace(config, warmup_steps=min(config.warmup_steps, epochs * steps // 10))
    spacing = spacing_of(plans, small)
    unlabelled = write_volumes(root, "Dataset500_PhantomTorso", plans, torsos[:-labelled], spacing)
    probed = write_volumes(root, "Dataset017_PhantomOrgans", plans, torsos[-labelled:], spacing)
    cases, train = probed.cases(), max(1, 2 * labelled // 3)
    probe = ProbeData(probed, tuple(cases[:train]), tuple(cases[train:]),
                      {name: (value,) for name, value in LABELS.items()}, every=1)  # fmt: skip
    out = root / "run"
    out.mkdir()
    setup = make_setup(method, config, plans, unlabelled, unlabelled.cases(), out)
    Pretraining(replace(setup, probe=probe), device).run()
    return _summary(alone, read_rows(out / METRICS), steps, len(setup.train), workers)


def _schedule(seconds: float, step: float, small: bool) -> tuple[int, int]:
    """Epochs, and steps of each; the probe and the start of the workers take part of the time."""
    if small:
        return 2, 3
    return _EPOCHS, min(100, max(2, int(0.8 * seconds / step / _EPOCHS)))


def _summary(alone: StepResult, rows: list[dict[str, Any]], steps: int, volumes: int, workers: int) -> dict[str, Any]:
    later = rows[1:] or rows
    seconds = sum(row["seconds"] for row in later)
    return {
        "method": alone.method,
        "epochs": len(rows),
        "steps_per_epoch": steps,
        "batch": alone.batch,
        "volumes": volumes,
        "workers": workers,
        "alone": alone.samples_per_second,
        "after_the_first": {
            "samples_per_second": sum(row["samples"] for row in later) / seconds,
            "data_wait": sum(row["data_wait"] * row["seconds"] for row in later) / seconds,
        },
        "rows": rows,
    }
