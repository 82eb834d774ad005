"""`nnssl_benchmark -target`: how well frozen features tell a label of scans, from few and from many labelled cases."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from nnssl.benchmarking.benchmark import FRACTIONS
from nnssl.benchmarking.subsets import Amount, amounts_of
from nnssl.checkpoints.runs import open_run
from nnssl.classification.frozen import start_of, vectors_of
from nnssl.classification.heads import Examples, fit_linear
from nnssl.classification.labels import Target
from nnssl.classification.question import ask
from nnssl.classification.results import NAMES, Predictions, rate
from nnssl.classification.splits import Fold
from nnssl.core.distributed import resolve_device
from nnssl.core.errors import UserError
from nnssl.core.figures import COLOURS, new_figure, save_figure
from nnssl.core.files import replace_file, write_json
from nnssl.core.names import csv_table, markdown, picture
from nnssl.data.folders import check_output_folder

_MOST = 1000  # seeds
_SHOWN = {"classification": "auroc", "regression": "r2"}
_LINES, _MARKERS = ("-", "--", "-.", ":"), "osD^vP"

log = logging.getLogger("nnssl")


@dataclass(frozen=True)
class ScanLabels:
    """Pooled scores of all folds.

    Args:
        scores: by name of the model, cases and seed: values by name of the score.
        amounts: of labelled cases in a fold.
        target: that was predicted.
    """

    scores: dict[tuple[str, int, int], dict[str, float]]
    amounts: list[Amount]
    target: Target

    def values(self, model: str, amount: Amount, score: str) -> list[float]:
        """Of every seed."""
        return [found[score] for (name, cases, _), found in sorted(self.scores.items())
                if (name, cases) == (model, amount.cases)]  # fmt: skip


def benchmark_scan_labels(
    dataset: int | str,
    models: Sequence[str],
    output: str | Path,
    target: str,
    fractions: Sequence[float] | None = None,
    seeds: int = 3,
    device: str | None = None,
) -> ScanLabels:
    """Fit a linear head to the frozen features of growing parts of the training cases, and score all test cases.

    The folds are those of `nnssl_classify`. Subsets are nested, and have the shares of the classes that the training
    cases have, but at least one case of each.

    Args:
        dataset: with `labels.csv`, number or name.
        models: RUN or `random:RUN`, or NAME=RUN.
        output: folder for `labels.csv`, `labels.md`, `labels.json` and `labels.png`.
        target: column of `labels.csv`.
        fractions: percentages of the training cases of a fold; None for 5, 10, 20, 50 and 100.
        seeds: number of orders of the training cases.
        device: `cuda` or `cpu`; None: cuda where PyTorch sees a card.

    Raises:
        UserError: as `nnssl.classify`; or an argument is out of range.
    """
    if not 1 <= seeds <= _MOST:
        raise UserError(f"-seeds takes a number from 1 to {_MOST}, not {seeds}")
    device, folder = resolve_device(device), Path(output)
    check_output_folder(folder)
    question = ask(dataset, target, None, 5, 0)
    labels = question.target
    amounts = _enough(amounts_of(min(len(fold.train) for fold in question.folds), fractions or FRACTIONS), labels)
    scores: dict[tuple[str, int, int], dict[str, float]] = {}
    for name, run in _runs(models).items():
        vectors = vectors_of(run, question.images, labels, question.results, device).of_case
        log.info(f"{name}: {len(vectors)} cases")
        for seed in range(seeds):
            orders = {fold.number: ordered(labels, fold.train, seed) for fold in question.folds}
            for amount in amounts:
                found: Predictions = {}
                for fold in question.folds:
                    found |= _predicted(vectors, labels, orders[fold.number][: amount.cases], fold, seed)
                pooled = rate(name, found, labels, question.folds).pooled
                scores[name, amount.cases, seed] = {key: one.value for key, one in pooled.items()}
    results = ScanLabels(scores, amounts, labels)
    _write(results, folder, f"{question.dataset}: {labels.name}")
    return results


def _runs(models: Sequence[str]) -> dict[str, Any]:
    """Opened runs by the names that tables show."""
    runs: dict[str, Any] = {}
    for text in models:
        named, sign, path = text.partition("=")
        run = open_run(path if sign else text)
        name = named if sign else start_of(run)
        if name in runs:
            raise UserError(f"two models are called {name}; give names, as in first=RUN second=RUN")
        runs[name] = run
    return runs


def _enough(amounts: Sequence[Amount], target: Target) -> list[Amount]:
    """Amounts of at least one case of each class, or of two cases; smaller ones become these, once."""
    fewest = max(2, len(target.classes))
    found = {max(amount.cases, fewest): amount.percent for amount in amounts}
    if raised := [amount for amount in amounts if amount.cases < fewest]:
        log.warning(f"{raised[0].percent:g} % of the training cases are {raised[0].cases}, fewer than can be learned "
                    f"from: {fewest} are used")  # fmt: skip
    return [Amount(cases, percent) for cases, percent in found.items()]


def ordered(target: Target, cases: Sequence[str], seed: int) -> list[str]:
    """Cases in a random order whose beginnings have one case of each class first, then the shares of the classes."""
    rng = np.random.default_rng(seed)
    values = target.of(cases) if target.classes else np.zeros(len(cases))
    places = np.empty(len(cases))
    for value in np.unique(values):
        members = rng.permutation(np.flatnonzero(values == value))
        places[members] = (np.arange(len(members)) + rng.random()) / len(members)
        places[members[0]] = -1
    return [cases[i] for i in np.argsort(places, kind="stable")]


def _predicted(vectors: Any, target: Target, train: Sequence[str], fold: Fold, seed: int) -> Predictions:
    head = fit_linear(Examples.of(vectors, target, train), seed)
    rows = head.predict(np.stack([vectors[case] for case in fold.test]))
    return {case: np.atleast_1d(row) for case, row in zip(fold.test, rows, strict=True)}


def _write(results: ScanLabels, folder: Path, title: str) -> None:
    names = list(dict.fromkeys(name for name, _, _ in results.scores))
    kinds = list(next(iter(results.scores.values())))
    rows = [(name, cases, seed, *(found[kind] for kind in kinds)) for (name, cases, seed), found in
            sorted(results.scores.items())]  # fmt: skip
    replace_file(folder / "labels.csv", csv_table(["model", "cases", "seed", *kinds], rows).encode())
    shown = _SHOWN[results.target.task]
    heads = [f"{amount.cases} cases ({amount.percent:.3g} %)" for amount in results.amounts]
    lines = [f"| {NAMES[shown]} of {markdown(results.target.name)} | " + " | ".join(heads) + " |",
             "|---|" + "---|" * len(heads)]  # fmt: skip
    for name in names:
        cells = [_cell(results.values(name, amount, shown)) for amount in results.amounts]
        lines.append(f"| {markdown(name)} | " + " | ".join(cells) + " |")
    replace_file(folder / "labels.md", "\n".join([*lines, ""]).encode())
    plain = [dict(zip(("model", "cases", "seed", *kinds), row, strict=True)) for row in rows]
    write_json(folder / "labels.json", [{k: None if isinstance(v, float) and math.isnan(v) else v
                                         for k, v in row.items()} for row in plain])  # fmt: skip
    for line in lines:
        log.info(line)
    _draw(results, names, shown, folder / "labels.png", title)


def _cell(values: Sequence[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def _draw(results: ScanLabels, names: Sequence[str], shown: str, file: Path, title: str) -> None:
    figure = new_figure(8.0, 4.6)
    axis = figure.subplots()
    counts = [amount.cases for amount in results.amounts]
    for place, name in enumerate(names):
        values = [results.values(name, amount, shown) for amount in results.amounts]
        bars = [stdev(seeds) if len(seeds) > 1 else 0.0 for seeds in values]
        beside = [count * 1.02 ** (place - (len(names) - 1) / 2) for count in counts]
        axis.errorbar(beside, [mean(seeds) for seeds in values], bars, color=COLOURS[place % (len(COLOURS) - 1)],
                      linestyle=_LINES[place % 4], marker=_MARKERS[place % 6], capsize=3,
                      label=picture(name))  # fmt: skip
    axis.axhline(0.5 if shown == "auroc" else 0.0, color="0.6", linewidth=0.8, linestyle=":", label="chance")
    axis.set_xscale("log", base=2)
    axis.set_xticks(counts, [f"{a.cases}\n{a.percent:.3g} %" for a in results.amounts])
    axis.minorticks_off()
    axis.set_xlabel("labelled cases of a fold, and their share of its training cases")
    axis.set_ylabel(NAMES[shown])
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    axis.set_title(picture(f"{title}, frozen features (bars: SD over seeds)"), fontsize=11)
    save_figure(figure, file)
