"""`nnssl_benchmark -target`: how well a label of scans is told from few and from many labelled cases."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from nnssl.benchmarking.benchmark import FRACTIONS
from nnssl.benchmarking.scan_trainings import (
    Orders,
    check_record,
    scan_trainings,
    subsets_of,
    write_subsets,
)
from nnssl.benchmarking.subsets import Amount, amounts_of
from nnssl.benchmarking.workflow import SOME_FAILED, run_tasks, say_commands
from nnssl.checkpoints.runs import Run, open_run
from nnssl.classification.classify import FINETUNED
from nnssl.classification.frozen import start_of, vectors_of
from nnssl.classification.heads import Examples, fit_linear
from nnssl.classification.labels import Target
from nnssl.classification.method import ClassificationConfig
from nnssl.classification.question import Question, ask
from nnssl.classification.results import NAMES, Predictions, rate
from nnssl.classification.splits import Fold
from nnssl.core.distributed import resolve_device
from nnssl.core.errors import UserError
from nnssl.core.figures import COLOURS, WIDTH, new_figure, save_figure
from nnssl.core.files import replace_file, write_json
from nnssl.core.names import csv_table, markdown, picture
from nnssl.data.folders import check_output_folder
from nnssl.methods.options import override

_MOST = 1000  # seeds
_SHOWN = {"classification": "auroc", "regression": "r2"}
_LINES, _MARKERS = ("-", "--", "-.", ":"), "osD^vP"

Scores = dict[tuple[str, int, int], dict[str, float]]

log = logging.getLogger("nnssl")


@dataclass(frozen=True)
class ScanLabels:
    """Pooled scores of all folds.

    Args:
        scores: by name of the model, cases and seed: values by name of the score.
        amounts: of labelled cases in a fold.
        target: that was predicted.
    """

    scores: Scores
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
    finetune: bool = False,
    options: Sequence[str] = (),
    num_parts: int = 1,
    part_id: int = 0,
    dry_run: bool = False,
    collect_only: bool = False,
) -> ScanLabels | None:
    """Learn from growing parts of the training cases, and score all test cases: by a linear head on frozen features.

    With `finetune` the networks are fine-tuned on the same parts too, each by `nnssl_classify` in a process of its
    own; the same call goes on where it was interrupted. The folds are those of `nnssl_classify`. Subsets are nested,
    and have the shares of the classes that the training cases have, but at least one case of each; two if networks
    are fine-tuned, since one of them is held out to tell when to stop.

    Args:
        dataset: with `labels.csv`, number or name.
        models: RUN or `random:RUN`, or NAME=RUN.
        output: folder for `labels.csv`, `labels.md`, `labels.json` and `labels.png`, and for the fine-tunings.
        target: column of `labels.csv`.
        fractions: percentages of the training cases of a fold; None for 5, 10, 20, 50 and 100.
        seeds: number of orders of the training cases.
        device: `cuda` or `cpu`; None: cuda where PyTorch sees a card.
        finetune: fine-tune too.
        options: `key=value` of the fine-tuning.
        num_parts: number of jobs that share the fine-tunings; the first one makes the tables.
        part_id: number of this job, from 0.
        dry_run: log the commands of the fine-tunings that are left, make nothing, and return None.
        collect_only: fine-tune nothing, make the tables of what is finished.

    Returns:
        Scores; None where this job makes no tables.

    Raises:
        UserError: as `nnssl.classify`; an argument is out of range; or fine-tunings failed, after all others are done.
    """
    if not 1 <= seeds <= _MOST:
        raise UserError(f"-seeds takes a number from 1 to {_MOST}, not {seeds}")
    if not 0 <= part_id < num_parts:
        raise UserError(f"-part_id counts from 0 to {num_parts - 1} (-num_parts - 1), not {part_id}")
    device, folder = resolve_device(device), Path(output).resolve()
    override(ClassificationConfig(), options, "-set")
    if not dry_run:
        check_output_folder(folder)
    question = ask(dataset, target, None, 5, 0)
    labels, least = question.target, 2 if finetune else 1
    amounts = amounts_of(min(len(fold.train) for fold in question.folds), fractions or FRACTIONS)
    amounts = _enough(amounts, labels, least)
    orders = {seed: {fold.number: ordered(labels, fold.train, seed, least) for fold in question.folds}
              for seed in range(seeds)}  # fmt: skip
    named = _named(models)
    runs = {name: open_run(path) for name, path in named.items()}
    tasks, failed = [], list[str]()
    if finetune:
        asked, subsets = check_record(folder, question, options), subsets_of(question, orders, amounts)
        tasks = scan_trainings(folder, question, named, subsets, options, device)
        if dry_run:
            say_commands(tasks[part_id::num_parts])
            return None
        if not collect_only:
            write_subsets(folder, asked, subsets)
    scores = _frozen(runs, question, orders, amounts, device) if part_id == 0 or collect_only else {}
    if not collect_only:
        failed = run_tasks(tasks[part_id::num_parts], lambda task: task.name, lambda task: None)
    if scores:
        finished = [task for task in tasks if task.state() == "finished"]
        scores |= {(f"{task.name}, {FINETUNED}", task.cases, task.seed): task.scores() for task in finished}
        _write(ScanLabels(scores, amounts, labels), folder, f"{question.dataset}: {labels.name}")
        if len(finished) < len(tasks):
            log.warning(f"{len(tasks) - len(finished)} of {len(tasks)} fine-tunings are not finished and not in the "
                        f"tables")  # fmt: skip
    else:
        log.info("tables: the same command with --collect")
    if failed:
        raise UserError(SOME_FAILED + "\n".join(failed))
    return ScanLabels(scores, amounts, labels) if scores else None


def _frozen(
    runs: Mapping[str, Run], question: Question, orders: Orders, amounts: Sequence[Amount], device: str
) -> Scores:
    """Scores of linear heads."""
    labels, scores = question.target, Scores()
    for name, run in runs.items():
        vectors = vectors_of(run, question.images, labels, question.results, device).of_case
        log.info(f"{name}: {len(vectors)} cases")
        for (seed, order), amount in product(orders.items(), amounts):
            found: Predictions = {}
            for fold in question.folds:
                found |= _predicted(vectors, labels, order[fold.number][: amount.cases], fold, seed)
            pooled = rate(name, found, labels, question.folds).pooled
            scores[name, amount.cases, seed] = {key: one.value for key, one in pooled.items()}
    return scores


def _named(models: Sequence[str]) -> dict[str, str]:
    """RUN or `random:RUN` by the names that tables show."""
    named: dict[str, str] = {}
    for text in models:
        given, sign, path = text.partition("=")
        path = path if sign else text
        name = given if sign else start_of(open_run(path))
        if name in named:
            raise UserError(f"two models are called {name}; give names, as in first=RUN second=RUN")
        named[name] = path
    return named


def _enough(amounts: Sequence[Amount], target: Target, least: int = 1) -> list[Amount]:
    """Amounts of at least `least` cases of each class, or of two cases; smaller ones become these, once."""
    fewest = max(2, least * len(target.classes))
    found = {max(amount.cases, fewest): amount.percent for amount in amounts}
    if raised := [amount for amount in amounts if amount.cases < fewest]:
        log.warning(f"{raised[0].percent:g} % of the training cases are {raised[0].cases}, fewer than can be learned "
                    f"from: {fewest} are used")  # fmt: skip
    return [Amount(cases, percent) for cases, percent in found.items()]


def ordered(target: Target, cases: Sequence[str], seed: int, least: int = 1) -> list[str]:
    """Cases in a random order whose beginnings have some of each class first, then the shares of the classes.

    Args:
        target: with the cases.
        cases: to order.
        seed: of the order.
        least: number of cases of each class at the beginning; of different groups, where there are enough.
    """
    rng = np.random.default_rng(seed)
    values, groups = target.of(cases) if target.classes else np.zeros(len(cases)), target.groups_of(cases)
    places = np.empty(len(cases))
    for value in np.unique(values):
        members = rng.permutation(np.flatnonzero(values == value))
        places[members] = (np.arange(len(members)) + rng.random()) / len(members)
        first = {groups[place]: place for place in members[::-1]}  # of each group, the earliest member
        places[sorted(first.values(), key=lambda place: places[place])[:least]] = -1
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
    if not values:
        return ""
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def _draw(results: ScanLabels, names: Sequence[str], shown: str, file: Path, title: str) -> None:
    figure = new_figure(WIDTH, 4.6)
    axis = figure.subplots()
    counts = [amount.cases for amount in results.amounts]
    for place, name in enumerate(names):
        values = [results.values(name, amount, shown) for amount in results.amounts]
        bars = [stdev(seeds) if len(seeds) > 1 else 0.0 for seeds in values]
        means = [mean(seeds) if seeds else math.nan for seeds in values]
        beside = [count * 1.02 ** (place - (len(names) - 1) / 2) for count in counts]
        axis.errorbar(beside, means, bars, color=COLOURS[place % (len(COLOURS) - 1)],
                      linestyle=_LINES[place % 4], marker=_MARKERS[place % 6], capsize=3,
                      label=picture(name))  # fmt: skip
    chance = (0.5, "chance") if shown == "auroc" else (0.0, "the mean of all cases")
    axis.axhline(chance[0], color="0.4", linewidth=1.2, linestyle=":", label=chance[1])
    axis.set_xscale("log", base=2)
    axis.set_xticks(counts, [f"{a.cases}\n{a.percent:.3g} %" for a in results.amounts])
    axis.minorticks_off()
    axis.set_xlabel("labelled cases of a fold, and their share of its training cases")
    axis.set_ylabel(f"{NAMES[shown]} ({'0 to 1' if shown == 'auroc' else 'at most 1'})")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=10, frameon=False, handlelength=2.6)
    axis.set_title(picture(f"{title} (bars: SD over seeds)"), fontsize=11)
    save_figure(figure, file)
