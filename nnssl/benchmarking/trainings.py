"""The benchmark's trainings with nnU-Net's own command, and the scores of those that are finished."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from nnssl.benchmarking.case_scores import Absent, read_structures
from nnssl.benchmarking.evaluate import evaluate_cases
from nnssl.benchmarking.evaluation_report import JSON, Evaluation, read_evaluation, write_evaluation
from nnssl.benchmarking.methods import Method, trainable_parameters
from nnssl.benchmarking.results import Results
from nnssl.benchmarking.subsets import Amount, Fold
from nnssl.benchmarking.workflow import State, Task
from nnssl.benchmarking.workspace import Workspace
from nnssl.core.errors import UserError
from nnssl.core.files import read_json
from nnssl.core.own_files import SummaryFile
from nnssl.data.folders import dataset_argument

_SHOWN = re.compile(
    r"Backbone from|trainable parameters|Recipe: |Frozen: |seudo Dice (?:of .* )?is still|Mean Validation Dice"
)
_CHECKPOINTS = ("checkpoint_latest.pth", "checkpoint_best.pth")


@dataclass(frozen=True, kw_only=True)
class Training(Task):
    """A method on one subset: `nnUNetv2_train`, whose validation predicts the test cases.

    Args:
        workspace: of the benchmark.
        method: trainer, plans and pretraining.
        fold: the subset.
        folder: folder that the training writes.
    """

    workspace: Workspace
    method: Method
    fold: Fold
    folder: Path

    @property
    def predictions(self) -> Path:
        """Folder of nnU-Net's predictions for the test cases."""
        return self.folder / "validation"

    def state(self) -> State:
        """See `Task`; the command ends with nnU-Net's summary of all test cases."""
        if self._scored() >= set(self.workspace.test.cases):
            return "finished"
        if (self.folder / "checkpoint_final.pth").is_file():
            return "trained"
        return "begun" if any((self.folder / name).is_file() for name in _CHECKPOINTS) else "missing"

    def _scored(self) -> set[str]:
        try:
            entries = read_json(self.predictions / "summary.json", SummaryFile)["metric_per_case"]
        except UserError:  # missing or cut off
            return set()
        return {Path(entry["prediction_file"]).name[: -len(self.workspace.ending)] for entry in entries}


def all_trainings(
    workspace: Workspace, methods: Sequence[Method], amounts: Sequence[Amount], seeds: int, device: str
) -> list[Training]:
    """All trainings, ordered so that an interrupted benchmark has compared all methods on the same subsets."""
    folds = {(fold.cases, fold.seed): fold for fold in workspace.folds}
    dataset, configuration = workspace.source.name, workspace.configuration
    found = []
    for seed, amount, method in product(range(seeds), amounts, methods):
        fold = folds[amount.cases, seed]
        results = workspace.home / "nnUNet_results" / method.name
        model = f"{method.trainer}__{workspace.plans[method.plans]['plans_name']}__{configuration}"
        which = (dataset_argument(dataset), configuration, str(fold.number))
        folders = {
            "nnUNet_preprocessed": str(workspace.preprocessed),
            "nnUNet_results": str(results),  # one per method: models from different pretrainings have the same name
        }
        found.append(
            Training(
                home=workspace.home,
                key=f"{method.name}_fold_{fold.number}",
                title=f"{method.name}, {fold.cases} cases, seed {seed} (fold {fold.number})",
                command=("nnUNetv2_train", *which, "-tr", method.trainer, "-p", method.plans, "-device", device),
                variables={**folders, **method.variables_of(seed)},
                shown=_SHOWN,
                workspace=workspace,
                method=method,
                fold=fold,
                folder=results / dataset / model / f"fold_{fold.number}",
            )
        )
    return found


def score_training(task: Training, tolerance: Sequence[str | float], absent: Absent, num_processes: int) -> Evaluation:
    """Scores of a finished training, computed once and kept beside its predictions; for the options see `evaluate`."""
    workspace = task.workspace
    plans, dataset_json, cases = workspace.plans[task.method.plans], workspace.dataset_json, workspace.test.cases
    structures = read_structures(dataset_json, plans, tolerance)
    with suppress(UserError):  # missing or damaged: compute it again
        known = read_evaluation(task.predictions / JSON)
        if (known.structures, known.absent, known.cases) == (structures, absent, cases):
            return known
    files = {case: f"{case}{workspace.ending}" for case in cases}
    pairs = {case: (workspace.truth / name, task.predictions / name) for case, name in files.items()}
    evaluation = evaluate_cases(pairs, dataset_json, plans, tolerance, absent, num_processes)
    write_evaluation(evaluation, task.predictions)
    return evaluation


def collect(
    tasks: Sequence[Training], amounts: Sequence[Amount], seeds: int, score: Callable[[Training], Evaluation]
) -> tuple[Results, list[Training]]:
    """Scores of all finished trainings, and the trainings that are not finished."""
    missing: list[Training] = []
    scores: dict[tuple[str, int, int], np.ndarray] = {}
    parameters: dict[str, int | None] = {task.method.name: None for task in tasks}
    tolerances: dict[str, float] = {}
    for task in tasks:
        if task.state() != "finished":
            missing.append(task)
            continue
        evaluation, name = score(task), task.method.name
        scores[name, task.fold.cases, task.fold.seed] = np.stack([evaluation.table(m) for m in ("dice", "nsd")])
        tolerances = {structure.name: structure.tolerance for structure in evaluation.structures}
        if parameters[name] is None:
            parameters[name] = trainable_parameters(task.folder)
    cases = tasks[0].workspace.test.cases
    found = Results(list(parameters), list(amounts), seeds, cases, list(tolerances), tolerances, scores, parameters)
    return found, missing


def missing_lines(tasks: Iterable[Training]) -> list[str]:
    """List the trainings that are left, one line per method."""
    by_method: dict[str, list[str]] = {}
    for task in tasks:
        begun = " (begun)" if task.state() != "missing" else ""
        by_method.setdefault(task.method.name, []).append(f"{task.fold.cases} cases seed {task.fold.seed}{begun}")
    return [f"{name}: {', '.join(folds)}" for name, folds in by_method.items()]
