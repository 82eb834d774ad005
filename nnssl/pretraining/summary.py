"""What a whole run came to: `summary.json` and the last lines of its log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nnssl.pretraining.metrics import Row

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
