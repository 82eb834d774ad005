"""Results of a cross-validation: scores of every kind of prediction, pooled and by fold, as JSON, CSV and a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.classification.labels import FILE, Target
from nnssl.classification.scores import FEWEST, Floats, Score, confusion, reliability, score
from nnssl.classification.splits import Fold
from nnssl.core.files import replace_file, write_json
from nnssl.core.names import csv_table, markdown

RESULTS = "results.json"
CONSTANT = {"classification": "class shares", "regression": "mean"}
Predictions = dict[str, Floats]  # (K,) probabilities or (1,) a number, by case
NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "average_precision": "average precision",
    "calibration_error": "calibration error",
    "mae": "MAE",
    "r2": "R2",
}


@dataclass(frozen=True)
class Rated:
    """Scores of one kind of prediction.

    Args:
        kind: such as logistic regression.
        cases: that were tested, fold after fold.
        truth, predicted: (N,) and (N, K) of them, or (N,) numbers.
        pooled: scores over all folds together.
        folds: scores of each fold.
    """

    kind: str
    cases: tuple[str, ...]
    truth: Floats
    predicted: Floats
    pooled: dict[str, Score]
    folds: dict[int, dict[str, Score]]


def rate(kind: str, predictions: Predictions, target: Target, folds: Sequence[Fold]) -> Rated:
    """Score predictions of the test cases of some folds."""
    by_fold = {fold.number: _scores(predictions, target, fold.test) for fold in folds}
    cases = tuple(case for fold in folds for case in fold.test)
    return Rated(kind, cases, target.of(cases), _stacked(predictions, target, cases),
                 _scores(predictions, target, cases), by_fold)  # fmt: skip


def few_warning(target: Target, folds: Sequence[Fold]) -> str | None:
    """A sentence where the folds test too few cases, or groups of cases, for intervals."""
    tested = [case for fold in folds for case in fold.test]
    groups = len(set(target.groups_of(tested)))
    if groups >= FEWEST:
        return None
    kind = "cases" if groups == len(tested) else "groups of cases"
    return (f"all folds together test {groups} of at least {FEWEST} {kind}: the scores get no interval, and a "
            f"difference may be chance; add cases to {FILE}")  # fmt: skip


def _stacked(predictions: Predictions, target: Target, cases: Sequence[str]) -> Floats:
    rows = np.stack([predictions[case] for case in cases]).astype(np.float64)
    return rows if target.classes else rows[:, 0]


def _scores(predictions: Predictions, target: Target, cases: Sequence[str]) -> dict[str, Score]:
    return score(_stacked(predictions, target, cases), target.of(cases), target.groups_of(cases))


def write_results(folder: Path, rated: Sequence[Rated], target: Target, folds: Sequence[Fold], about: Any) -> None:
    """Write `results.json`, `results.csv`, `results.md` and `predictions.csv`.

    Args:
        folder: where.
        rated: what was scored, the most important first.
        target: that was predicted.
        folds: that were tested.
        about: what else the JSON says, JSON types.
    """
    table = [
        (one.kind, part, name, *(_plain(value) for value in (found.value, found.low, found.high)))
        for one in rated
        for part, scores in (("pooled", one.pooled), *((f"fold {n}", of_fold) for n, of_fold in one.folds.items()))
        for name, found in scores.items()
    ]
    csv = csv_table(["prediction", "cases", "score", "value", "low", "high"],
                    [["" if cell is None else cell for cell in row] for row in table])  # fmt: skip
    replace_file(folder / "results.csv", csv.encode())
    replace_file(folder / "predictions.csv", _predictions(rated, target, folds).encode())
    replace_file(folder / "results.md", "\n".join(table_lines(rated, target)).encode() + b"\n")
    write_json(folder / RESULTS, {**about, "predictions": {one.kind: _content(one, target) for one in rated}})


def _content(one: Rated, target: Target) -> dict[str, Any]:
    content: dict[str, Any] = {"pooled": _scores_of(one.pooled), "cases": len(one.cases)}
    content["folds"] = {str(number): _scores_of(scores) for number, scores in one.folds.items()}
    if target.classes:
        found = reliability(one.predicted, one.truth)
        content["confusion"] = confusion(one.predicted, one.truth).tolist()
        content["calibration"] = {key: np.asarray(value).tolist() for key, value in asdict(found).items()}
    return content


def _scores_of(scores: dict[str, Score]) -> dict[str, Any]:
    return {name: {key: _plain(v) for key, v in asdict(found).items()} for name, found in scores.items()}


def _plain(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 5)


def _predictions(rated: Sequence[Rated], target: Target, folds: Sequence[Fold]) -> str:
    """A line a case: its fold, its value, and what each kind of prediction says of it."""
    parts = target.classes or ("",)
    header = ["case", "fold", target.name, *(f"{one.kind}: {part}" if part else one.kind for one in rated
                                             for part in parts)]  # fmt: skip
    number = {case: fold.number for fold in folds for case in fold.test}
    lines = []
    for place, case in enumerate(rated[0].cases):
        truth = rated[0].truth[place]
        said = target.classes[int(truth)] if target.classes else f"{truth:g}"
        given = [f"{value:.5g}" for one in rated for value in np.atleast_1d(one.predicted[place])]
        lines.append([case, number[case], said, *given])
    return csv_table(header, lines)


def table_lines(rated: Sequence[Rated], target: Target) -> list[str]:
    """A table in Markdown: the pooled scores with their intervals, and the range over the folds."""
    names = list(rated[0].pooled)
    lines = [
        f"| {markdown(target.name)} | " + " | ".join(NAMES[name] for name in names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for one in rated:
        lines.append(f"| {one.kind} | " + " | ".join(shown_score(one.pooled[name]) for name in names) + " |")
        if len(one.folds) > 1:
            spans = (_span([scores[name].value for scores in one.folds.values()]) for name in names)
            lines.append("| &nbsp; folds | " + " | ".join(spans) + " |")
    count = len(rated[0].cases)
    fewer = f"; no interval with fewer than {FEWEST}" if rated[0].pooled[names[0]].low is None else ""
    drawn = "groups" if len(set(target.groups)) < len(target.groups) else "cases"
    return [*lines, "", f"{count} test cases of {len(rated[0].folds)} folds together, with 95 % intervals (bootstrap "
                        f"over {drawn}{fewer}); below: lowest to highest fold."]  # fmt: skip


def shown_score(found: Score) -> str:
    """A score with its interval, if it has one."""
    if not math.isfinite(found.value):
        return "-"
    said = f"{found.value:.3g}" if abs(found.value) >= 10 else f"{found.value:.3f}"
    if found.low is None or found.high is None:
        return said
    ends = (f"{end:.3g}" if abs(end) >= 10 else f"{end:.3f}" for end in (found.low, found.high))
    return f"{said} ({' to '.join(ends)})"


def _span(values: Sequence[float]) -> str:
    known = [value for value in values if math.isfinite(value)]
    return f"{shown_score(Score(min(known)))} to {shown_score(Score(max(known)))}" if known else "-"
