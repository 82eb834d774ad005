"""What a run tells after every epoch and at its end: files, log lines and trackers of the main process."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import torch

from nnssl.core.distributed import is_main, world_size
from nnssl.core.files import write_json
from nnssl.core.signals import Interrupted
from nnssl.core.system import dispensable, why
from nnssl.pretraining.metrics import Row, collapse_warning, epoch_line, read_rows, write_rows
from nnssl.pretraining.pictures import draw_progress
from nnssl.pretraining.setup import Setup
from nnssl.pretraining.trackers import Tracker, open_trackers

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


log = logging.getLogger("nnssl")

METRICS, SUMMARY = "metrics.jsonl", "summary.json"


class Reporter:
    """Open while the run goes on, so that trackers learn how it ends.

    Args:
        setup: of the run.
        epoch: finished epochs.
    """

    def __init__(self, setup: Setup, epoch: int) -> None:
        self.setup, self.first = setup, epoch
        self._trackers: list[Tracker] = []

    def rows(self, device: torch.device) -> list[Row]:
        """Those of finished epochs that such a device has made."""
        rows = read_rows(self.setup.folder / METRICS)
        return [row for row in rows if row["epoch"] <= self.first and row.get("device") == device.type]

    def epoch(self, row: Row) -> None:
        """Add the row of an epoch to `metrics.jsonl`, draw `progress.png`, write the epoch's line.

        Rows of the same and of later epochs go: an earlier process wrote them after its last checkpoint.
        """
        file = self.setup.folder / METRICS
        rows = [r for r in read_rows(file) if r["epoch"] < row["epoch"]] + [row]
        row.update(totals(rows))
        write_rows(file, rows)
        with dispensable("progress.png"):
            draw_progress(rows, self.setup.folder / "progress.png", self.setup.folder.parent.name)
        log.info(epoch_line(row, self.setup.config.num_epochs))
        if warning := collapse_warning(row):
            log.warning(warning)
        self._tell_trackers(lambda tracker: tracker.log(row))

    def summary(self) -> None:
        """Write `summary.json` and its lines, after the last epoch."""
        if rows := read_rows(self.setup.folder / METRICS):
            summary = summarise(rows, world_size())
            write_json(self.setup.folder / SUMMARY, summary)
            for line in summary_lines(summary):
                log.info(line)

    def __enter__(self) -> Reporter:
        """Open the trackers that are asked for; raises as `open_trackers` and `read_rows`."""
        if is_main():
            read_rows(self.setup.folder / METRICS)  # not only after the first epoch
            self._trackers = open_trackers(self.setup, self.first)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tell_trackers(lambda tracker: tracker.close(kind is not None and not issubclass(kind, Interrupted)))

    def _tell_trackers(self, tell: Callable[[Tracker], None]) -> None:
        """Whatever ails a tracker, the run goes on without it: `metrics.jsonl` has the rows, and weeks are at stake."""
        for tracker in list(self._trackers):
            try:
                tell(tracker)
            except Exception as error:
                self._trackers.remove(tracker)
                said = why(error) or f"{type(error).__name__}: {error}"
                log.warning(f"{tracker.name} is left out from now on, metrics.jsonl goes on ({' '.join(said.split())})")
