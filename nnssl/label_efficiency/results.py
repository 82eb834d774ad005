"""Scores of the finished trainings, as arrays that statistics and tables start from."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nnssl.errors import UserError
from nnssl.evaluation.evaluate import evaluate_cases
from nnssl.evaluation.overlap import Absent
from nnssl.evaluation.report import JSON, Evaluation, read_evaluation, row_means, write_evaluation
from nnssl.evaluation.structures import read_structures
from nnssl.label_efficiency.subsets import Amount
from nnssl.label_efficiency.tasks import Task
from nnssl.label_efficiency.trainable import trainable_parameters

MEAN = "mean"
log = logging.getLogger("nnssl")


@dataclass(frozen=True)
class Results:
    """What exists so far.

    Args:
        methods: names, in the order of the tables; some may have no results yet.
        amounts: of labels, rising.
        seeds: how many were asked for.
        cases: of the test set.
        structures: names.
        tolerances: of the surface Dice in mm, by structure.
        scores: by (method, number of cases, seed): (metric, case, structure) with Dice first and surface Dice second;
            NaN where a structure is excluded.
        parameters: trainable ones by method; None where no training is finished or it keeps no state of its parameters.
    """

    methods: list[str]
    amounts: list[Amount]
    seeds: int
    cases: list[str]
    structures: list[str]
    tolerances: dict[str, float]
    scores: dict[tuple[str, int, int], np.ndarray]
    parameters: dict[str, int | None]

    def seeds_of(self, *methods: str, cases: int) -> list[int]:
        """Seeds that all these methods have finished with so many labelled cases."""
        return [s for s in range(self.seeds) if all((m, cases, s) in self.scores for m in methods)]

    def by_case(self, method: str, cases: int, metric: int, seeds: Sequence[int]) -> np.ndarray:
        """(test cases, structures + 1), mean over the seeds; the last column is the mean over the structures."""
        tables = [_with_mean(self.scores[method, cases, seed][metric]) for seed in seeds]
        return _nan_mean(np.stack(tables))


def collect(tasks: Sequence[Task], amounts: Sequence[Amount], seeds: int, tolerance: Sequence[str | float],
            absent: Absent, num_processes: int) -> tuple[Results, list[Task]]:  # fmt: skip
    """Scores of all finished trainings, and the trainings that are not finished."""
    missing: list[Task] = []
    scores: dict[tuple[str, int, int], np.ndarray] = {}
    done: dict[str, Path] = {}
    workspace = tasks[0].workspace
    plans = workspace.plans[tasks[0].method.plans]
    structures = read_structures(workspace.dataset_json, plans, tolerance)
    for task in tasks:
        if task.state() != "finished":
            missing.append(task)
            continue
        evaluation = score_task(task, tolerance, absent, num_processes)
        key = (task.method.name, task.fold.cases, task.fold.seed)
        scores[key] = np.stack([evaluation.table(metric) for metric in ("dice", "nsd")])
        done.setdefault(task.method.name, task.folder)
    methods = list(dict.fromkeys(task.method.name for task in tasks))
    parameters = {name: trainable_parameters(folder) for name, folder in done.items()}
    return Results(
        methods, list(amounts), seeds, workspace.test.cases, [s.name for s in structures],
        {s.name: s.tolerance for s in structures}, scores, {name: parameters.get(name) for name in methods},
    ), missing  # fmt: skip


def score_task(task: Task, tolerance: Sequence[str | float], absent: Absent, num_processes: int) -> Evaluation:
    """Scores of a finished training, computed once and kept beside its predictions."""
    workspace = task.workspace
    plans = workspace.plans[task.method.plans]
    file = task.predictions / JSON
    structures = read_structures(workspace.dataset_json, plans, tolerance)
    known = _read_known(file)
    if known is not None and (known.structures, known.absent, known.cases) == (
        structures,
        absent,
        workspace.test.cases,
    ):
        return known
    ending = workspace.dataset_json["file_ending"]
    pairs = {
        case: (workspace.truth / f"{case}{ending}", task.predictions / f"{case}{ending}")
        for case in workspace.test.cases
    }
    evaluation = evaluate_cases(pairs, workspace.dataset_json, plans, tolerance, absent, num_processes)
    write_evaluation(evaluation, task.predictions)
    return evaluation


def missing_lines(tasks: Iterable[Task]) -> list[str]:
    """What is still to be trained, a line a method."""
    by_method: dict[str, list[str]] = {}
    for task in tasks:
        begun = " (begun)" if task.state() != "missing" else ""
        by_method.setdefault(task.method.name, []).append(f"{task.fold.cases} cases seed {task.fold.seed}{begun}")
    return [f"{name}: {', '.join(folds)}" for name, folds in by_method.items()]


def _read_known(file: Path) -> Evaluation | None:
    try:
        return read_evaluation(file)
    except UserError:  # not there, or damaged: it is computed again
        return None


def _with_mean(table: np.ndarray) -> np.ndarray:
    return np.column_stack([table, row_means(table)])


def _nan_mean(tables: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is not NaN."""
    known = ~np.isnan(tables)
    counts = known.sum(0)
    sums: np.ndarray = np.where(known, tables, 0).sum(0)
    return np.where(counts > 0, sums / np.maximum(counts, 1), math.nan)
