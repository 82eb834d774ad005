"""Scores as files: `nnssl_evaluation.json` for programs, `nnssl_evaluation.csv` for tables."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.benchmarking.case_scores import Absent, Score, Structure
from nnssl.core.files import read_json, replace_file, write_json
from nnssl.core.names import csv_table
from nnssl.core.own_files import EvaluationFile

JSON, CSV = "nnssl_evaluation.json", "nnssl_evaluation.csv"
MEAN = "mean"  # over the structures
_DIGITS = 6


@dataclass(frozen=True)
class Evaluation:
    """Scores of a folder.

    Args:
        structures: in the order of dataset.json.
        absent: score of a structure that a case does not have, see `nnssl.benchmarking.case_scores.dice`.
        scores: of all cases, structure by structure.
    """

    structures: list[Structure]
    absent: Absent
    scores: list[Score]

    @property
    def cases(self) -> list[str]:
        """Names, sorted."""
        return sorted({score.case for score in self.scores})

    def table(self, metric: str) -> np.ndarray:
        """(cases, structures) of `dice` or `nsd`; NaN for excluded structures."""
        rows = {case: i for i, case in enumerate(self.cases)}
        columns = {structure.name: i for i, structure in enumerate(self.structures)}
        values = np.full((len(rows), len(columns)), math.nan)
        for score in self.scores:
            values[rows[score.case], columns[score.structure]] = getattr(score, metric)
        return values

    def summary(self) -> dict[str, dict[str, float]]:
        """Mean and standard deviation over the cases of every structure, and of the cases' means as `mean`."""
        tables = {metric: self.table(metric) for metric in ("dice", "nsd")}
        result: dict[str, dict[str, float]] = {}
        columns = {metric: [*table.T, known_mean(table, 1)] for metric, table in tables.items()}
        for i, name in enumerate([*(s.name for s in self.structures), MEAN]):
            result[name] = {}
            for metric, of_metric in columns.items():
                result[name][metric], result[name][f"{metric}_sd"] = mean_and_deviation(of_metric[i])
                result[name]["cases"] = int((~np.isnan(of_metric[i])).sum())
        return result


def known_mean(table: np.ndarray, axis: int) -> np.ndarray:
    """Mean of the values over an axis, without NaN; NaN if there are none."""
    known = ~np.isnan(table)
    counts = known.sum(axis)
    sums = np.where(known, table, 0).sum(axis)
    return np.where(counts > 0, sums / np.maximum(counts, 1), math.nan)


def mean_and_deviation(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation (n - 1) of the values, without NaN; NaN if there are too few."""
    known = values[~np.isnan(values)]
    return (
        float(known.mean()) if len(known) else math.nan,
        float(known.std(ddof=1)) if len(known) > 1 else math.nan,
    )


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write both files, each of them whole or not at all."""
    summary = evaluation.summary()
    cases: dict[str, dict[str, Any]] = {}
    for score in evaluation.scores:
        entry = {f.name: getattr(score, f.name) for f in fields(score)[2:]}
        cases.setdefault(score.case, {})[score.structure] = entry
    content = {
        "tolerance_mm": {structure.name: structure.tolerance for structure in evaluation.structures},
        "structures": {structure.name: structure.key for structure in evaluation.structures},
        "absent": evaluation.absent,
        "mean": summary,
        "cases": cases,
    }
    write_json(folder / JSON, _plain(content))
    write_csv(folder / CSV, [f.name for f in fields(Score)], map(astuple, evaluation.scores))


def read_evaluation(file: Path) -> Evaluation:
    """The scores in a `nnssl_evaluation.json`.

    Raises:
        UserError: the file is missing or damaged.
    """
    content = read_json(file, EvaluationFile, "delete it, and evaluate again")
    structures = [
        Structure(name, tuple(key) if isinstance(key, list) else key, content["tolerance_mm"][name])
        for name, key in content["structures"].items()
    ]
    scores = [
        Score(
            case,
            name,
            _number(values["dice"]),
            _number(values["nsd"]),
            values["reference_voxels"],
            values["predicted_voxels"],
        )
        for case, of_case in content["cases"].items()
        for name, values in of_case.items()
    ]
    return Evaluation(structures, content["absent"], scores)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def write_csv(file: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV in one step, never half of it; values have six digits, and NaN is an empty cell."""
    replace_file(file, csv_table(header, ([_cell(value) for value in row] for row in rows)).encode())


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else round(value, _DIGITS)
    return value


def _plain(value: Any) -> Any:
    """Replace NaN by None, for JSON."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, float):
        return None if math.isnan(value) else value
    return value
