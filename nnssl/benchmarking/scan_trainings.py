"""Fine-tunings of `nnssl_benchmark -target`: `nnssl_classify` on nested subsets of every fold's training cases."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from nnssl.benchmarking.subsets import Amount
from nnssl.benchmarking.workflow import State, Task
from nnssl.classification.classify import ABOUT, FINETUNED
from nnssl.classification.question import Question
from nnssl.classification.results import RESULTS
from nnssl.classification.splits import Fold
from nnssl.core.errors import UserError
from nnssl.core.files import read_json, write_json
from nnssl.core.names import check_name
from nnssl.core.scan_files import ClassificationResults, ScanQuestion
from nnssl.data.folders import dataset_argument

Orders = Mapping[int, Mapping[int, Sequence[str]]]  # training cases by seed and fold
_RECORD = "question.json"
_SHOWN = re.compile(r"fold \d+: |^\| fine-tuned|warning: ")


@dataclass(frozen=True, kw_only=True)
class ScanTraining(Task):
    """A model fine-tuned on one subset, in all folds.

    Args:
        name: of the model.
        cases: of each fold, that it learns from.
        seed: of their order, and of the training.
        folder: that the command writes.
    """

    name: str
    cases: int
    seed: int
    folder: Path

    def state(self) -> State:
        """See `Task`; the results are written after the last fold."""
        if (self.folder / RESULTS).is_file():
            return "finished"
        return "begun" if (self.folder / ABOUT).is_file() else "missing"

    def scores(self) -> dict[str, float]:
        """Pooled scores by name; NaN where there is none."""
        content = read_json(self.folder / RESULTS, ClassificationResults, f"remove {self.folder} to train it anew")
        pooled = content["predictions"][FINETUNED]["pooled"]
        return {key: math.nan if found["value"] is None else float(found["value"]) for key, found in pooled.items()}


@dataclass(frozen=True)
class Subset:
    """Folds with the first training cases of an order.

    Args:
        cases: of a fold, that are learned from.
        seed: of the order.
        folds: with all test cases.
    """

    cases: int
    seed: int
    folds: tuple[Fold, ...]

    def file(self, home: Path) -> Path:
        """Where they are kept."""
        return home / "splits" / f"{self.cases}_cases_seed_{self.seed}.json"


def subsets_of(question: Question, orders: Orders, amounts: Sequence[Amount]) -> list[Subset]:
    """The subsets of all seeds and amounts."""
    return [
        Subset(amount.cases, seed,
               tuple(Fold(fold.number, tuple(order[fold.number][: amount.cases]), fold.test)
                     for fold in question.folds))
        for (seed, order), amount in product(orders.items(), amounts)
    ]  # fmt: skip


def scan_trainings(
    home: Path, question: Question, models: Mapping[str, str], subsets: Sequence[Subset], options: Sequence[str],
    device: str,
) -> list[ScanTraining]:  # fmt: skip
    """All fine-tunings, ordered so that an interrupted benchmark has compared all models on the same subsets.

    Args:
        home: folder of the benchmark.
        question: target and folds.
        models: RUN or `random:RUN` by name.
        subsets: to learn from.
        options: `key=value` of `nnssl_classify -set`.
        device: to train on.
    """
    found = []
    for subset, (name, model) in product(subsets, models.items()):
        check_name(name, "file", "-m")
        key = f"{name}_{subset.cases}_cases_seed_{subset.seed}"
        folder = home / "finetuned" / key
        words = ["-d", dataset_argument(question.dataset), "-m", model, "-target", question.target.name, "-task",
                 question.target.task, "--finetune", "-splits", subset.file(home), "-o", folder, "-seed", subset.seed,
                 "-device", device, *(["-set", *options] if options else [])]  # fmt: skip
        found.append(
            ScanTraining(
                home=home, key=key, title=f"{name}, fine-tuned, {subset.cases} cases, seed {subset.seed}",
                command=("nnssl_classify", *map(str, words)), product=folder, shown=_SHOWN,
                name=name, cases=subset.cases, seed=subset.seed, folder=folder,
            )
        )  # fmt: skip
    return found


def check_record(home: Path, question: Question, options: Sequence[str]) -> dict[str, Any]:
    """What all trainings of a folder have in common, to write to it.

    Raises:
        UserError: the folder has trainings of other labels, folds or options.
    """
    target = question.target
    asked = {
        "dataset": question.dataset,
        "target": target.name,
        "labels": {case: target.classes[int(value)] if target.classes else value
                   for case, value in zip(target.cases, target.values.tolist(), strict=True)},
        "groups": dict(zip(target.cases, target.groups, strict=True)),
        "folds": [{"train": list(fold.train), "val": list(fold.test)} for fold in question.folds],
        "options": sorted(options),
    }  # fmt: skip
    if (home / _RECORD).is_file():
        known = read_json(home / _RECORD, ScanQuestion, "give another -o")
        if others := [key for key, value in asked.items() if known[key] != value]:
            raise UserError(f"{home} has fine-tunings with other {others[0]}; restore them, or give another -o")
    return asked


def write_subsets(home: Path, asked: Mapping[str, Any], subsets: Sequence[Subset]) -> None:
    """Write the record, and a file with folds for each subset."""
    (home / "splits").mkdir(parents=True, exist_ok=True)
    write_json(home / _RECORD, dict(asked))
    for subset in subsets:
        write_json(subset.file(home), [{"train": list(fold.train), "val": list(fold.test)} for fold in subset.folds])
