"""How long is long enough: Dice of the probe against steps, from the `metrics.jsonl` of pretrainings."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from pays_tables import PRETRAINED

from nnssl.checkpoints.files import FINAL
from nnssl.core import names as escape
from nnssl.core.figures import COLOURS, new_figure, save_figure
from nnssl.core.files import replace_file

FILE = "pays_probe.csv"
COLUMNS = ("dataset", "method", "seed", "epoch", "step", "linear_dice", "nonlinear_dice")
NEAR = 0.02  # of the best Dice of a curve
_MARKERS = "osD^vP*X"
Rows = dict[tuple[str, str, str], list[dict[str, str]]]  # by dataset, method, seed


@dataclass(frozen=True)
class Curve:
    """Linear Dice of a method against steps.

    Args:
        steps: at which every seed was measured.
        dice: (seeds, steps).
    """

    steps: Sequence[int]
    dice: np.ndarray

    @property
    def means(self) -> np.ndarray:
        """(steps,), over the seeds."""
        means: np.ndarray = self.dice.mean(0)
        return means

    @property
    def deviations(self) -> np.ndarray:
        """(steps,), over the seeds; 0 of a single one."""
        seeds = len(self.dice)
        return self.dice.std(0, ddof=1) if seeds > 1 else np.zeros(len(self.steps))

    @property
    def enough(self) -> int:
        """First step at which the mean is within `NEAR` of its best."""
        return self.steps[int(np.flatnonzero(self.means >= self.means.max() - NEAR)[0])]


def collect_probes(pretrained: Path, folder: Path, named: Mapping[str, str] | None = None) -> None:
    """Put the probes' Dice of all finished runs below `pretrained` into the CSV; other runs there stay.

    Args:
        pretrained: with seed_S/DATASET/nnssl_METHOD__PLANS__CONFIGURATION/fold_F/metrics.jsonl.
        folder: of the CSV.
        named: other names of methods.
    """
    rows = _read(folder / FILE)
    for final in sorted(pretrained.glob(f"seed_*/Dataset*/nnssl_*/fold_*/{FINAL}")):
        file = final.with_name("metrics.jsonl")
        seed, dataset, run = (part.split("_", 1) for part in file.parts[-5:-2])
        number = str(int(dataset[0].removeprefix("Dataset")))
        method = run[1].split("__")[0]
        method = (named or {}).get(method, method)
        epochs = [json.loads(line) for line in file.read_text().splitlines()]
        rows[number, method, seed[1]] = [
            dict(zip(COLUMNS, (number, method, seed[1], str(e["epoch"]), str(e["step"]),
                               *(f"{e[f'probe_{head}_dice']:.4f}" for head in ("linear", "nonlinear"))), strict=True))
            for e in epochs if "probe_linear_dice" in e
        ]  # fmt: skip
    cells = [[row[c] for c in COLUMNS] for key in sorted(rows) for row in rows[key]]
    if cells:
        replace_file(folder / FILE, escape.csv_table(COLUMNS, cells).encode())


def read_curves(folder: Path, dataset: int) -> dict[str, Curve]:
    """Curves by method of a pretraining's dataset, at the steps that all seeds have reached."""
    of_method: dict[str, list[dict[int, float]]] = defaultdict(list)
    for (number, method, _), rows in _read(folder / FILE).items():
        if number == str(dataset) and rows:
            of_method[method].append({int(row["step"]): float(row["linear_dice"]) for row in rows})
    curves = {}
    for method, seeds in of_method.items():
        if steps := sorted(set.intersection(*(set(seed) for seed in seeds))):
            curves[method] = Curve(steps, np.array([[seed[step] for step in steps] for seed in seeds]))
    return {method: curves[method] for method in PRETRAINED if method in curves} | curves


def draw_curves(curves: Mapping[str, Curve], file: Path, title: str) -> None:
    """Plot linear Dice of the probe against steps; bands are the SD over seeds."""
    figure = new_figure(8.0, 4.5)
    axis = figure.subplots()
    for number, (method, curve) in enumerate(curves.items()):
        colour, means, deviations = COLOURS[number % 6], curve.means, curve.deviations
        axis.plot(curve.steps, means, color=colour, marker=_MARKERS[number % 8], markersize=5, label=method,
                  linestyle="-" if number < 6 else ":")  # fmt: skip
        axis.fill_between(curve.steps, means - deviations, means + deviations, color=colour, alpha=0.15, linewidth=0)
    axis.set_xlabel("steps of the pretraining")
    axis.set_ylabel("linear Dice of the probe")
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.set_title(title, fontsize=11)
    axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    save_figure(figure, file)


def curves_table(curves: Mapping[str, Curve], planned: Sequence[str]) -> str:
    """Dice at the start, the half and the end of every method, and when it is near its best."""
    lines = ["| method | seeds | first epoch | half | last epoch | best | first within 0.02 of the best at step |",
             "|---|---:|---:|---:|---:|---:|---:|"]  # fmt: skip
    for method in [*planned, *(m for m in curves if m not in planned)]:
        curve = curves.get(method)
        if curve is None:
            lines.append(f"| {escape.markdown(method)} | | | | | | not run |")
            continue
        last = len(curve.steps) - 1
        shown = [_score(curve.dice[:, place]) for place in (0, last // 2, last, int(curve.means.argmax()))]
        near = f"{curve.enough} of {curve.steps[-1]}"
        lines.append(f"| {escape.markdown(method)} | {len(curve.dice)} | " + " | ".join([*shown, near]) + " |")
    return "\n".join(lines)


def _score(seeds: np.ndarray) -> str:
    values = [float(v) for v in seeds]
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def _read(file: Path) -> Rows:
    rows: Rows = defaultdict(list)
    if file.is_file():
        with open(file, newline="") as stream:
            for row in csv.DictReader(stream):
                rows[row["dataset"], row["method"], row["seed"]].append(row)
    return rows
