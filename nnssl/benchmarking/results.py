"""Scores of the finished trainings: statistics, and tables as CSV, Markdown and LaTeX (as PiMPiC's Tables 1 and 2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np

from nnssl.benchmarking.evaluation_report import MEAN, known_mean, mean_and_deviation, write_csv
from nnssl.benchmarking.subsets import Amount
from nnssl.core import names as escape
from nnssl.core.files import replace_file

RESAMPLES = 10_000
_SEED = 0
_QUANTILES = (0.025, 0.975)
METRICS = ("Dice", "Surface Dice")
_COLUMNS = ("method", "percent", "labelled_cases", "seed", "case", "structure", "dice", "nsd")


@dataclass(frozen=True)
class Results:
    """All scores so far.

    Args:
        methods: names in the order of the tables, also of methods without results.
        amounts: amounts of labels, ascending.
        seeds: number of seeds that the user asked for.
        cases: names of the test cases.
        structures: names.
        tolerances: of the surface Dice in mm, by structure.
        scores: (metric, case, structure) by (method, number of cases, seed), with Dice first and surface Dice second;
            NaN where a structure is excluded.
        parameters: number of trainable parameters by method; None if no training is finished or the optimiser keeps no
            state of them.
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
        """Seeds that all these methods have finished with this number of labelled cases."""
        return [s for s in range(self.seeds) if all((m, cases, s) in self.scores for m in methods)]

    def by_case(self, method: str, cases: int, metric: int, seeds: Sequence[int]) -> np.ndarray:
        """(test cases, structures + 1), mean over the seeds; the last column is the mean over the structures."""
        tables = [self.scores[method, cases, seed][metric] for seed in seeds]
        return known_mean(np.stack([np.column_stack([table, known_mean(table, 1)]) for table in tables]), 0)


@dataclass(frozen=True)
class Difference:
    """Lead of a method over the baseline: a row of comparison.csv.

    Args:
        method: name.
        percent: share of the labels.
        cases: number of labelled cases.
        structure: name, or `mean`.
        metric: `dice` or `nsd`.
        mean: mean over the test cases.
        low, high: ends of its 95 % interval.
        seeds: number of seeds that both have finished.
    """

    method: str
    percent: float
    cases: int
    structure: str
    metric: str
    mean: float
    low: float
    high: float
    seeds: int


def cells(results: Results, method: str, cases: int, metric: int) -> list[tuple[float, float]] | None:
    """Mean and standard deviation over the test cases, of every structure and of their mean.

    Seeds are averaged case by case. The deviation (n - 1) of a single case is NaN; None if nothing is finished.
    """
    seeds = results.seeds_of(method, cases=cases)
    if not seeds:
        return None
    return [mean_and_deviation(column) for column in results.by_case(method, cases, metric, seeds).T]


def differences(results: Results, baseline: str) -> list[Difference]:
    """Compare all methods with the baseline, for both metrics and every structure, with the seeds that both have."""
    found = []
    for amount in results.amounts:
        for method in results.methods:
            seeds = results.seeds_of(method, baseline, cases=amount.cases)
            if method == baseline or not seeds:
                continue
            for metric, name in enumerate(("dice", "nsd")):
                pair = (results.by_case(m, amount.cases, metric, seeds) for m in (method, baseline))
                gap = np.subtract(*pair)
                for structure, column in zip([*results.structures, MEAN], gap.T, strict=True):
                    mean, low, high = bootstrap(column)
                    found.append(Difference(method, amount.percent, amount.cases, structure, name, mean, low, high,
                                            len(seeds)))  # fmt: skip
    return found


def bootstrap(values: np.ndarray, resamples: int = RESAMPLES, seed: int = _SEED) -> tuple[float, float, float]:
    """Mean of the values, and the 95 % percentile interval of the means of samples drawn with replacement.

    The same seed draws the same cases: all methods and structures are compared on the same samples.

    Args:
        values: one per test case; NaN does not count.
        resamples: number of samples.
        seed: of the draw.
    """
    known = ~np.isnan(values)
    if not known.any():
        return math.nan, math.nan, math.nan
    drawn = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    counts = known[drawn].sum(1)
    sums = np.where(known, values, 0)[drawn].sum(1)
    means = sums[counts > 0] / counts[counts > 0]
    low, high = np.quantile(means, _QUANTILES)
    return float(values[known].mean()), float(low), float(high)


def seed_means(results: Results, method: str, cases: int, metric: int = 0) -> list[float]:
    """Mean over test cases and structures for each finished seed."""
    return [
        float(np.nanmean(results.by_case(method, cases, metric, [seed])[:, -1]))
        for seed in results.seeds_of(method, cases=cases)
    ]


def write_tables(results: Results, ahead: Sequence[Difference], baseline: str, folder: Path) -> None:
    """Write results.csv, comparison.csv, results.md and results.tex."""
    write_csv(folder / "results.csv", _COLUMNS, _long(results))
    write_csv(folder / "comparison.csv", [f.name for f in fields(Difference)], map(astuple, ahead))
    for name, text in (
        ("results.md", markdown(results, ahead, baseline)),
        ("results.tex", latex(results, ahead, baseline)),
    ):
        replace_file(folder / name, text.encode())


def markdown(results: Results, ahead: Sequence[Difference], baseline: str) -> str:
    """Both metrics as Markdown tables."""
    parts = []
    for metric, name in enumerate(METRICS):
        head = ["labelled cases", "method", *results.structures, MEAN, f"ahead of {baseline}"]
        lines = ["| " + " | ".join(map(escape.markdown, head)) + " |", "|---" * 2 + "|---:" * (len(head) - 2) + "|"]
        rows = _rows(results, ahead, metric, escape.markdown, "**{}**")
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        parts.append(f"### {name}\n\n{escape.markdown(_caption(results, name))}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def latex(results: Results, ahead: Sequence[Difference], baseline: str) -> str:
    r"""Both metrics as LaTeX tables that need `\usepackage{booktabs}`."""
    parts = []
    for metric, name in enumerate(METRICS):
        head = ["Labels", "Method", *results.structures, MEAN, f"ahead of {baseline}"]
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{name}. {escape.latex(_caption(results, name))}}}",
                 rf"\begin{{tabular}}{{ll{'c' * (len(head) - 2)}}}", r"\toprule",
                 " & ".join(map(escape.latex, head)) + r" \\"]  # fmt: skip
        last = None
        for amount, *others in _rows(results, ahead, metric, escape.latex, r"\textbf{{{}}}"):
            if amount != last:
                lines.append(r"\midrule")
            lines.append(" & ".join([amount if amount != last else "", *others]) + r" \\")
            last = amount
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]))
    return "\n".join(parts).replace("±", r"$\pm$")


def _rows(
    results: Results, ahead: Sequence[Difference], metric: int, escaped: Callable[[str], str], bold: str
) -> Iterator[list[str]]:
    """Cells of every method with every amount of labels; the highest scores for an amount are `bold`."""
    metric_name = ("dice", "nsd")[metric]
    gaps = {(d.method, d.cases): d for d in ahead if d.structure == MEAN and d.metric == metric_name}
    for amount in results.amounts:
        scores = {m: cells(results, m, amount.cases, metric) for m in results.methods}
        highest = _highest([c for c in scores.values() if c is not None])
        for method, found in scores.items():
            if found is None:
                continue
            best = [round(mean, 3) == top for (mean, _), top in zip(found, highest, strict=True)]
            shown = [bold.format(score_text(*c)) if b else score_text(*c) for c, b in zip(found, best, strict=True)]
            seeds = len(results.seeds_of(method, cases=amount.cases))
            name = method if seeds == results.seeds else f"{method} ({seeds} of {results.seeds} seeds)"
            gap = gaps.get((method, amount.cases))
            yield [
                escaped(f"{amount.cases} ({amount.percent:.3g} %)"),
                escaped(name),
                *shown,
                "" if gap is None else f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]",
            ]


def _highest(scores: Sequence[Sequence[tuple[float, float]]]) -> list[float]:
    """Highest mean of every column, rounded as in the table; NaN if all are the same."""
    columns = [[round(mean, 3) for mean, _ in column if not math.isnan(mean)] for column in zip(*scores, strict=True)]
    return [max(column) if len(set(column)) > 1 else math.nan for column in columns]


def _long(results: Results) -> Iterator[tuple[object, ...]]:
    percents = {a.cases: a.percent for a in results.amounts}
    for (method, cases, seed), tables in results.scores.items():
        for i, case in enumerate(results.cases):
            for j, structure in enumerate(results.structures):
                yield (method, float(percents[cases]), cases, seed, case, structure, *map(float, tables[:, i, j]))


def _caption(results: Results, metric: str) -> str:
    of_seeds = f", each the mean of {results.seeds} seeds" if results.seeds > 1 else ""
    text = (f"Mean ± standard deviation over {len(results.cases)} test cases{of_seeds}; differences with 95 % "
            f"bootstrap intervals over the test cases.")  # fmt: skip
    if metric == METRICS[0]:
        return text
    limits = sorted(set(results.tolerances.values()))
    if len(limits) == 1:
        return f"{text} Tolerance {limits[0]:g} mm."
    listed = ", ".join(f"{name} {limit:g}" for name, limit in results.tolerances.items())
    return f"{text} Tolerances in mm: {listed}."


def score_text(mean: float, deviation: float) -> str:
    """A score with its deviation, if it has one; `-` if it is NaN."""
    if math.isnan(mean):
        return "-"
    return f"{mean:.3f}" if math.isnan(deviation) else f"{mean:.3f} ± {deviation:.3f}"
