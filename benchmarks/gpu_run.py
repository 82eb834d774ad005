"""A short pretraining on phantoms through the real loop, with or without the online probe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu_setups import config_of, make_setup, plans_of
from gpu_step import StepResult
from gpu_waits import CountedRun

from nnssl.data.loader import number_of_workers
from nnssl.data.volumes import VolumeFolder
from nnssl.demo.anatomy import LABELS
from nnssl.pretraining.metrics import read_rows
from nnssl.pretraining.probe import OnlineProbe
from nnssl.pretraining.probe_data import ProbeData
from nnssl.pretraining.reporting import METRICS
from nnssl.pretraining.setup import Setup

_EPOCHS = 8


def short_run(
    alone: StepResult, volumes: VolumeFolder, probed: VolumeFolder | None, device: torch.device, seconds: float,
    small: bool, out: Path,
) -> dict[str, Any]:  # fmt: skip
    """Pretrain for about `seconds`, and return the epochs' rows with the settings of the run and the host's waits.

    Args:
        alone: a step of the method, measured; its batch is taken.
        volumes: to train on.
        probed: labelled ones for the probe, two at least: two thirds for its heads, the others for the Dice. The same
            heads are trained on the untrained network too.
        device: to train on.
        seconds: of training, about; files and the start of the workers take more.
        small: toy size.
        out: folder that is made for the run.
    """
    method, workers = alone.method, number_of_workers()
    plans = plans_of(method, small)
    step = max(alone.step, alone.batch * alone.sampling / max(1, workers))
    epochs, steps = _schedule(seconds, step, small, 2 if probed is None else _EPOCHS)
    shrunk = {} if alone.crops is None or method == "simclr" else {"crops": alone.crops}
    config = config_of(
        method, plans, small, num_epochs=epochs, steps_per_epoch=steps, val_steps_per_epoch=0,
        save_every_epochs=epochs, batch_size=alone.batch, **shrunk,
    )  # fmt: skip
    config = replace(config, warmup_steps=min(config.warmup_steps, epochs * steps // 10))
    out.mkdir()
    setup: Setup = make_setup(method, config, plans, volumes, volumes.cases(), out)
    if probed is not None:
        cases = probed.cases()
        train = max(1, 2 * len(cases) // 3)
        setup = replace(setup, probe=ProbeData(probed, tuple(cases[:train]), tuple(cases[train:]),
                        {name: (value,) for name, value in LABELS.items()}, every=1))  # fmt: skip
    run = CountedRun(setup, device)
    run.run()
    found = _summary(alone, read_rows(out / METRICS), steps, len(setup.train), workers)
    found["waits"] = dict(run.waits) if device.type == "cuda" else None
    if run.probe is not None:
        found["untrained"] = untrained_dice(setup, device, run.precision, run.probe.state()["units"])
    return found


def untrained_dice(setup: Setup, device: torch.device, precision: torch.dtype, units: float) -> dict[str, float]:
    """Dice of the probe's heads, trained as in the run, on the network before its first step.

    Args:
        setup: of the run, with a probe.
        device: of the run.
        precision: of the run.
        units: what a step of the run costs, from its probe, by which the heads are trained as often.
    """
    torch.manual_seed(setup.config.seed)  # the run's initial weights
    probe = OnlineProbe(setup, setup.build_method().to(device), device, precision)
    probe.load_state({**probe.state(), "units": units})
    for step in range(setup.config.num_epochs * setup.config.steps_per_epoch):
        probe.after_step(step)
    return probe.finish_epoch(setup.config.num_epochs)


def _schedule(seconds: float, step: float, small: bool, epochs: int) -> tuple[int, int]:
    """Epochs, and steps of each; the probe and the start of the workers take part of the time."""
    if small:
        return 2, 3
    return epochs, min(100, max(2, int(0.8 * seconds / step / epochs)))


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
