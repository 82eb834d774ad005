"""Tables of the scores as CSV, Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, fields
from pathlib import Path

from nnssl.benchmarking.evaluation_report import MEAN, write_csv
from nnssl.benchmarking.results import KEYS, Difference, Results, cells, too_few, winners
from nnssl.benchmarking.subsets import Amount
from nnssl.core import names as escape
from nnssl.core.files import replace_file

METRICS = ("Dice", "Surface Dice")
COLUMNS = ("method", "percent", "labelled_cases", "seed", "case", "structure", "dice", "nsd")


def write_tables(results: Results, ahead: Sequence[Difference], baseline: str, folder: Path) -> None:
    """Write results.csv, comparison.csv, results.md and results.tex."""
    write_csv(folder / "results.csv", COLUMNS, _long(results))
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
        rows = table_rows(results, ahead, metric, escape.markdown, "**{}**")
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        parts.append(f"### {name}\n\n{escape.markdown(caption(results, name))}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def latex(results: Results, ahead: Sequence[Difference], baseline: str) -> str:
    r"""Both metrics as LaTeX tables that need `\usepackage{booktabs}`."""
    parts = []
    for metric, name in enumerate(METRICS):
        head = ["Labels", "Method", *results.structures, MEAN, f"ahead of {baseline}"]
        lines = [r"\begin{table}", r"\centering", rf"\caption{{{name}. {escape.latex(caption(results, name))}}}",
                 rf"\begin{{tabular}}{{ll{'c' * (len(head) - 2)}}}", r"\toprule",
                 " & ".join(map(escape.latex, head)) + r" \\"]  # fmt: skip
        last = None
        for amount, *others in table_rows(results, ahead, metric, escape.latex, r"\textbf{{{}}}"):
            if amount != last:
                lines.append(r"\midrule")
            lines.append(" & ".join([amount if amount != last else "", *others]) + r" \\")
            last = amount
        parts.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]))
    return "\n".join(parts).replace("±", r"$\pm$")


def table_rows(
    results: Results,
    ahead: Sequence[Difference],
    metric: int,
    escaped: Callable[[str], str],
    bold: str,
    amounts: Sequence[Amount] = (),
) -> Iterator[list[str]]:
    """Cells of every method with every amount of labels; winners are `bold`.

    Args:
        results: scores.
        ahead: of `differences`.
        metric: 0 for Dice, 1 for surface Dice.
        escaped: makes a name safe for the format.
        bold: pattern such as `**{}**`.
        amounts: some of the amounts; all of them without.

    Yields:
        Labels, method, a score for every structure and their mean, lead over the baseline.
    """
    gaps = {(d.method, d.cases): d for d in ahead if d.structure == MEAN and d.metric == KEYS[metric]}
    for amount in amounts or results.amounts:
        won = winners(results, amount.cases, metric)
        for method in results.methods:
            found = cells(results, method, amount.cases, metric)
            if found is None:
                continue
            shown = [bold.format(score_text(*c)) if method == w else score_text(*c)
                     for c, w in zip(found, won, strict=True)]  # fmt: skip
            seeds = len(results.seeds_of(method, cases=amount.cases))
            name = method if seeds == results.seeds else f"{method} ({seeds} of {results.seeds} seeds)"
            gap = gaps.get((method, amount.cases))
            yield [
                escaped(f"{amount.cases} ({amount.percent:.3g} %)"),
                escaped(name),
                *shown,
                "" if gap is None else lead_text(gap),
            ]


def _long(results: Results) -> Iterator[tuple[object, ...]]:
    percents = {a.cases: a.percent for a in results.amounts}
    for (method, cases, seed), tables in results.scores.items():
        for i, case in enumerate(results.cases):
            for j, structure in enumerate(results.structures):
                yield (method, float(percents[cases]), cases, seed, case, structure, *map(float, tables[:, i, j]))


def caption(results: Results, metric: str) -> str:
    """What the numbers of a table are, and why it has no intervals."""
    spread = f" ± standard deviation of the {results.seeds} seeds' means" if results.seeds > 1 else ""
    text = f"Mean{spread} over {len(results.cases)} test cases; leads with the number of seeds that are ahead"
    if reason := too_few(len(results.cases), results.seeds):
        text += f". {reason}"
    else:
        text += (" and a 95 % bootstrap interval over the test cases, seeds averaged first. Bold: ahead of every other "
                 "row that has all seeds, with intervals above 0.")  # fmt: skip
    if metric == METRICS[0]:
        return text
    limits = sorted(set(results.tolerances.values()))
    if len(limits) == 1:
        return f"{text} Tolerance {limits[0]:g} mm."
    listed = ", ".join(f"{name} {limit:g}" for name, limit in results.tolerances.items())
    return f"{text} Tolerances in mm: {listed}."


def lead_text(gap: Difference) -> str:
    """A lead with its interval, if it has one, and the number of seeds that are ahead."""
    interval = "" if math.isnan(gap.low) else f" [{gap.low:+.3f}, {gap.high:+.3f}]"
    return f"{gap.mean:+.3f}{interval}, {gap.seeds_ahead} of {gap.seeds} seed{'s' * (gap.seeds > 1)}"


def score_text(mean: float, deviation: float) -> str:
    """A score with its deviation, if it has one; `-` if it is NaN."""
    if math.isnan(mean):
        return "-"
    return f"{mean:.3f}" if math.isnan(deviation) else f"{mean:.3f} ± {deviation:.3f}"
