"""The results as CSV, Markdown and LaTeX, in the shape of PiMPiC's Tables 1 and 2."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, fields
from pathlib import Path

from nnssl.benchmarking.evaluation_report import MEAN, write_csv
from nnssl.benchmarking.results import Cell, Difference, Results, cells
from nnssl.core import names as escape
from nnssl.core.files import replace_file

METRICS = ("Dice", "Surface Dice")
_COLUMNS = ("method", "percent", "labelled_cases", "seed", "case", "structure", "dice", "nsd")


def write_tables(results: Results, ahead: Sequence[Difference], baseline: str, folder: Path) -> None:
    """results.csv, comparison.csv, results.md and results.tex."""
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
    """Cells of every method with every amount of labels; the highest scores of an amount are `bold`."""
    metric_name = ("dice", "nsd")[metric]
    gaps = {(d.method, d.cases): d for d in ahead if d.structure == MEAN and d.metric == metric_name}
    for amount in results.amounts:
        scores = {m: cells(results, m, amount.cases, metric) for m in results.methods}
        highest = _highest([c for c in scores.values() if c is not None])
        for method, found in scores.items():
            if found is None:
                continue
            best = [round(c.mean, 3) == top for c, top in zip(found, highest, strict=True)]
            shown = [bold.format(_score(c)) if b else _score(c) for c, b in zip(found, best, strict=True)]
            seeds = len(results.seeds_of(method, cases=amount.cases))
            name = method if seeds == results.seeds else f"{method} ({seeds} of {results.seeds} seeds)"
            gap = gaps.get((method, amount.cases))
            yield [
                escaped(f"{amount.cases} ({amount.percent:.3g} %)"),
                escaped(name),
                *shown,
                "" if gap is None else f"{gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]",
            ]


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


def _score(cell: Cell) -> str:
    if math.isnan(cell.mean):
        return "-"
    return f"{cell.mean:.3f}" if math.isnan(cell.deviation) else f"{cell.mean:.3f} ± {cell.deviation:.3f}"
