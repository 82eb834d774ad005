"""Running means of an epoch, `metrics.jsonl`, and the line of an epoch."""

from __future__ import annotations

import json
import resource
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from nnssl.checkpoints.files import FINAL, LATEST
from nnssl.core.distributed import gather_objects, world_size
from nnssl.core.errors import UserError
from nnssl.core.files import checked, replacing
from nnssl.core.own_files import EpochRow
from nnssl.core.sending import Arrival
from nnssl.data.loader import LoadedBatch, Stream

Row = dict[str, Any]
_MEND_ROW = "remove that line, or move the file away: it is begun anew"


@dataclass
class PendingStep:
    """Metrics of a step of a stream that the device may still be computing."""

    stream: Literal["train", "val"]
    step: int
    cases: list[str]
    names: list[str]
    values: Arrival


class RunningMeans:
    """Sums of named scalars; plain numbers, so that a checkpoint can hold them."""

    def __init__(self, sums: dict[str, float] | None = None, count: int = 0) -> None:
        self.sums, self.count = dict(sums or {}), count

    def add(self, names: Sequence[str], values: Sequence[float]) -> None:
        """One step's values."""
        for name, value in zip(names, values, strict=True):
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def means(self, prefix: str = "") -> dict[str, float]:
        """Mean of every name."""
        return {prefix + name: value / self.count for name, value in self.sums.items()}

    def state(self) -> Row:
        """What a checkpoint keeps."""
        return {"sums": dict(self.sums), "count": self.count}


def read_rows(file: Path) -> list[Row]:
    """Rows of `metrics.jsonl`; none where it does not exist. A last line that a kill cut short is left out.

    Raises:
        UserError: another line is damaged.
    """
    lines = file.read_bytes().splitlines() if file.is_file() else []
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        where = f"{file}, line {number}"
        try:
            rows.append(checked(json.loads(line), EpochRow, where, _MEND_ROW))
        except ValueError as error:
            if number < len(lines):
                raise UserError(f"{where} is no JSON; {_MEND_ROW}") from error
    return rows


def write_rows(file: Path, rows: list[Row]) -> None:
    """All rows, replacing the file in one piece."""
    with replacing(file) as temporary:
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))


def memory_gib(device: torch.device) -> float:
    """Peak memory: allocated on the card for CUDA, else resident in the main process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def epoch_line(row: Row, num_epochs: int) -> str:
    """One line for the terminal and the log."""
    parts = [f"epoch {row['epoch']}/{num_epochs}", f"loss {row['loss']:.4f}"]
    if "val_loss" in row:
        parts.append(f"val {row['val_loss']:.4f}")
    parts += [
        f"std {row['embedding_std']:.4f}",
        *([f"rank {row['effective_rank']:.1f}"] if "effective_rank" in row else []),
        *_probed(row),
        f"lr {row['learning_rate']:.2e}",
        f"{row['samples_per_second']:.2f} samples/s",
        f"data-wait {100 * row['data_wait']:.1f} %",
        f"{row['memory_gib']:.2f} GiB",
        f"{row['seconds']:.1f} s",
    ]
    return "  ".join(parts)


def _probed(row: Row) -> list[str]:
    """Dice of the probe where it is due, and its share of the time."""
    scores = [f"{row[key]:.3f}" for key in ("probe_linear_dice", "probe_nonlinear_dice") if key in row]
    parts = [f"probe {' / '.join(scores)} Dice"] if scores else []
    return parts + ([f"probe-time {100 * row['probe_share']:.1f} %"] if "probe_share" in row else [])


class Watch:
    """Means of both streams in the epoch under way, and whether any process was told to stop.

    A step is read when the next one is queued, so that the device never waits for the log.
    """

    def __init__(self, folder: Path, device: torch.device, flag: str = "-o") -> None:
        self.folder, self.device, self.flag = folder, device, flag
        self.means: dict[Stream, RunningMeans] = {"train": RunningMeans(), "val": RunningMeans()}
        self.stop = False
        self._pending: deque[PendingStep] = deque()

    def add(self, stream: Stream, step: int, batch: LoadedBatch, terms: dict[str, Tensor], stop: bool) -> None:
        """Queue a step's metrics and read those of the step before.

        Raises:
            UserError: the loss or the gradient of the step before is not finite.
        """
        told = torch.full((), float(stop), device=self.device)
        values = torch.stack([v.detach().float().reshape(()) for v in terms.values()] + [told])
        if world_size() > 1:
            torch.distributed.all_reduce(values)
            values /= world_size()
        self._pending.append(PendingStep(stream, step, batch.cases, list(terms), Arrival(values)))
        while len(self._pending) > 1:
            self._read(self._pending.popleft())

    def settle(self) -> None:
        """Read what is queued; raises as `add`."""
        while self._pending:
            self._read(self._pending.popleft())

    def _read(self, pending: PendingStep) -> None:
        *values, stop = pending.values.read().tolist()
        self.stop = stop > 0
        watched = {n: v for n, v in zip(pending.names, values, strict=True) if n in ("loss", "gradient_norm")}
        if not np.isfinite(list(watched.values())).all():
            name, value = next((n, v) for n, v in watched.items() if not np.isfinite(v))
            raise self._not_finite(pending, name, value)
        self.means[pending.stream].add(pending.names, values)

    def _not_finite(self, pending: PendingStep, name: str, value: float) -> UserError:
        last = [f for f in (LATEST, FINAL) if (self.folder / f).is_file()]
        good = str(self.folder / last[0]) if last else "none was written yet"
        cases = sorted({case for share in gather_objects(pending.cases) for case in share})
        return UserError(f"the {name.replace('_', ' ')} is {value} at step {pending.step} ({pending.stream}), cases "
                         f"{', '.join(cases)}; last good checkpoint: {good}; look at those "
                         f"volumes, or lower the rate with {self.flag} learning_rate=...")  # fmt: skip


_HEALTH = ("embedding_std", "effective_rank", "alignment", "uniformity")
_NAMES = ("deviation", "effective rank", "alignment", "uniformity")
_DICE = ("probe_linear_dice", "probe_nonlinear_dice")


def totals(rows: Sequence[Row]) -> Row:
    """Cost of all epochs together; energy is None where that of any epoch is not known."""
    energy = [row.get("energy_kwh") for row in rows]
    known = [kwh for kwh in energy if kwh is not None]
    return {
        "total_device_hours": sum(row.get("device_hours", 0.0) for row in rows),
        "total_energy_kwh": sum(known) if len(known) == len(energy) else None,
    }


def summarise(rows: Sequence[Row], processes: int) -> dict[str, Any]:
    """The summary of a run from its rows; None stands for what is not known.

    `data_wait` and `probe_share` are shares of the time of the steps and of all time, `device_hours` wall hours times
    processes, `best_probe` the highest Dice of each kind of head with its epoch.
    """
    last = rows[-1]
    rows = [row for row in rows if "wall_seconds" in row]  # earlier versions did not write what an epoch cost
    seconds, wall = (sum(row[key] for row in rows) for key in ("seconds", "wall_seconds"))
    return {
        "epochs": last["epoch"],
        "steps": last["step"],
        "samples": sum(row.get("samples", 0) for row in rows),
        "device": last["device"],
        "processes": processes,
        "device_hours": last["total_device_hours"],
        "wall_hours": wall / 3600,
        "samples_per_second": sum(row.get("samples", 0) for row in rows) / max(seconds, 1e-9),
        "data_wait": sum(row["data_wait"] * row["seconds"] for row in rows) / max(seconds, 1e-9),
        "peak_memory_gib": max(row["memory_gib"] for row in rows),
        "energy_kwh": last["total_energy_kwh"],
        "loss": last["loss"],
        "val_loss": last.get("val_loss"),
        **{key: last.get(key) for key in _HEALTH},
        "probe_share": _probe_share(rows, wall),
        "best_probe": _best_probe(rows),
    }


def summary_lines(summary: dict[str, Any]) -> list[str]:
    """The summary for the log."""
    unit = {"cuda": "GPU", "cpu": "CPU"}.get(summary["device"], summary["device"])
    energy = "energy not reported" if summary["energy_kwh"] is None else f"{summary['energy_kwh']:.3g} kWh"
    cost = [
        f"{summary['steps']} steps, {summary['samples']} samples in {summary['device_hours']:.3g} {unit}-hours "
        f"({summary['processes']} process{'es' if summary['processes'] > 1 else ''})",
        f"{summary['samples_per_second']:.2f} samples/s",
        f"data-wait {100 * summary['data_wait']:.1f} %",
        f"{summary['peak_memory_gib']:.2f} GiB",
        energy,
    ]
    state = [f"loss {summary['loss']:.4f}"]
    if summary["val_loss"] is not None:
        state.append(f"val {summary['val_loss']:.4f}")
    state += [f"{n} {summary[k]:.4g}" for k, n in zip(_HEALTH, _NAMES, strict=True) if summary[k] is not None]
    lines = ["cost: " + ", ".join(cost), "at the end: " + ", ".join(state)]
    if summary["best_probe"]:
        best = [f"{kind} {found['dice']:.4f} (epoch {found['epoch']})" for kind, found in summary["best_probe"].items()]
        lines.append(f"best probe Dice: {', '.join(best)}; the probe took {100 * summary['probe_share']:.1f} % of the "
                     f"time")  # fmt: skip
    return lines


def _probe_share(rows: Sequence[Row], wall: float) -> float | None:
    if not any("probe_share" in row for row in rows):
        return None
    return sum(row.get("probe_share", 0.0) * row["wall_seconds"] for row in rows) / max(wall, 1e-9)


def _best_probe(rows: Sequence[Row]) -> dict[str, dict[str, float]] | None:
    best = {}
    for key in _DICE:
        probed = [row for row in rows if row.get(key) is not None]
        if probed:
            row = max(probed, key=lambda r: float(r[key]))
            best[key.removeprefix("probe_").removesuffix("_dice")] = {"dice": row[key], "epoch": row["epoch"]}
    return best or None
