"""The results as CSV, Markdown and LaTeX, in the shape of PiMPiC's Tables 1 and 2."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from nnssl.core import escape
from nnssl.evaluation.report import write_csv
from nnssl.label_efficiency.results import MEAN, Results
from nnssl.label_efficiency.statistics import Cell, Difference, cells
from nnssl.label_efficiency.subsets import Amount

METRICS = ("Dice", "Surface Dice")
_COLUMNS = ("method", "percent", "labelled_cases", "seed", "case", "structure", "dice", "nsd")


@dataclass(frozen=True)
class Row:
    """One method with one amount of labels; a table says with `best` which of its numbers are the highest ones."""

    amount: Amount
    method: str
    cells: list[Cell]
    best: list[bool]
    ahead: Difference | None
    seeds: int


def write_tables(results: Results, ahead: Sequence[Difference], baseline: str, folder: Path) -> None:
    """results.csv, comparison.csv, results.md and results.tex."""
    write_csv(folder / "results.csv", _COLUMNS, _long(results))
    write_csv(folder / "comparison.csv", [f.name for f in fields(Difference)], map(astuple, ahead))
    for name, text in (
        ("results.md", markdown(results, ahead, baseline)),
        ("results.tex", latex(results, ahead, baseline)),
    ):
        temporary = folder / f".{name}.writing"
        temporary.write_text(text)
        temporary.replace(folder / name)


def markdown(results: Results, ahead: Sequence[Difference], baseline: str) -> str:
    """Both metrics as Markdown tables."""
    parts = []
    for metric, name in enumerate(METRICS):
        head = ["labelled cases", "method", *results.structures, MEAN, f"ahead of {baseline}"]
        lines = ["| " + " | ".join(map(escape.markdown, head)) + " |", "|---" * 2 + "|---:" * (len(head) - 2) + "|"]
        for row in _rows(results, ahead, metric):
            scores = [f"**{_score(c)}**" if b else _score(c) for c, b in zip(row.cells, row.best, strict=True)]
            method = escape.markdown(_method(row, results))
            lines.append("| " + " | ".join([_amount(row.amount), method, *scores, _ahead(row)]) + " |")
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
        for row in _rows(results, ahead, metric):
            if row.amount != last:
                lines.append(r"\midrule")
            scores = [rf"\textbf{{{_score(c)}}}" if b else _score(c) for c, b in zip(row.cells, row.best, strict=True)]
            first = _amount(row.amount) if row.amount != last else ""
            last = row.amount
            begin = [escape.latex(text) for text in (first, _method(row, results))]
            lines.append(" & ".join([*begin, *scores, escape.latex(_ahead(row))]) + r" \\")
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]))
    return "\n".join(parts).replace("±", r"$\pm$")


def _rows(results: Results, ahead: Sequence[Difference], metric: int) -> Iterator[Row]:
    metric_name = ("dice", "nsd")[metric]
    gaps = {(d.method, d.cases): d for d in ahead if d.structure == MEAN and d.metric == metric_name}
    for amount in results.amounts:
        scores = {m: cells(results, m, amount.cases, metric) for m in results.methods}
        highest = _highest([c for c in scores.values() if c is not None])
        for method, found in scores.items():
            if found is None:
                continue
            best = [round(c.mean, 3) == top for c, top in zip(found, highest, strict=True)]
            seeds = len(results.seeds_of(method, cases=amount.cases))
            yield Row(amount, method, found, best, gaps.get((method, amount.cases)), seeds)


def _highest(scores: Sequence[Sequence[Cell]]) -> list[float]:
    """Highest mean of every column as it reads in the table; NaN where all are the same."""
    columns = [[round(c.mean, 3) for c in column if not math.isnan(c.mean)] for column in zip(*scores, strict=True)]
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


def _amount(amount: Amount) -> str:
    return f"{amount.cases} ({amount.percent:.3g} %)"


def _method(row: Row, results: Results) -> str:
    return row.method if row.seeds == results.seeds else f"{row.method} ({row.seeds} of {results.seeds} seeds)"


def _score(cell: Cell) -> str:
    if math.isnan(cell.mean):
        return "-"
    return f"{cell.mean:.3f}" if math.isnan(cell.deviation) else f"{cell.mean:.3f} ± {cell.deviation:.3f}"


def _ahead(row: Row) -> str:
    if row.ahead is None:
        return ""
    return f"{row.ahead.mean:+.3f} [{row.ahead.low:+.3f}, {row.ahead.high:+.3f}]"
