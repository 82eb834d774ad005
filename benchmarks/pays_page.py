"""docs/results.md: its tables and figures from the CSV files in benchmarks/results."""

from __future__ import annotations

import csv
import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from pays_curves import collect_probes, curves_table, draw_curves, read_curves
from pays_table import Table
from pays_tables import PRETRAINED, TABLES, UNTRAINED

from nnssl.benchmarking.evaluation_report import MEAN
from nnssl.benchmarking.plots import draw_labels, draw_parameters
from nnssl.benchmarking.results import Results, differences
from nnssl.benchmarking.subsets import Amount
from nnssl.benchmarking.tables import COLUMNS, METRICS, caption, table_rows
from nnssl.core import names as escape
from nnssl.core.errors import UserError
from nnssl.core.files import replace_file

ROOT = Path(__file__).resolve().parent.parent
PAGE, FIGURES, SCORES = ROOT / "docs" / "results.md", ROOT / "docs" / "figures", ROOT / "benchmarks" / "results"
# Tables of the same dataset, and the trainable values of their rows, as nnssl_benchmark counts them.
_TRAINABLE = {"018_linear": 1_331, "018": 351_801}
_BLOCK = re.compile(r"(<!-- (?P<kind>table|probe) (?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
log = logging.getLogger("nnssl")


def write_docs(out: Path | None) -> None:
    """Write the page and its figures, after adding what OUT has to the files in benchmarks/results.

    Args:
        out: folder of `does_it_pay.py`, or None.
    """
    if out is not None:
        for table in TABLES.values():
            add_scores(out / table.name / "results" / "results.csv", scores_file(table.name))
        collect_probes(out / "pretrained", SCORES)
        collect_probes(out / "untrained", SCORES, {method: name for name, method in UNTRAINED.items()})
    for table in TABLES.values():
        if results := read_scores(scores_file(table.name), table):
            title = f"{table.title} (bars: SD over seeds)"
            shown = replace(results, methods=_run(results))
            draw_labels(shown, _baseline(table, results), figure_of(table.name), title)
    draw_linear_and_whole(FIGURES / "parameters.png")
    for source in {table.source for table in TABLES.values()}:
        if curves := read_curves(SCORES, source):
            title = f"Dataset {source}: frozen features against steps (bands: SD over seeds)"
            draw_curves(curves, FIGURES / f"results_probe_{source}.png", title)
    replace_file(PAGE, page(PAGE.read_text()).encode())
    log.info(f"written: {PAGE}")


def draw_linear_and_whole(file: Path) -> None:
    """Dice against trainable values: linear heads, and the long fine-tunings of the networks that have both, if run."""
    linear, whole = (read_scores(scores_file(name), TABLES[name]) for name in _TRAINABLE)
    if linear is None or whole is None:
        return
    heads = [name for name in _run(linear) if name.startswith("random") or f"{name}_long" in _run(whole)]
    networks = [name for name in _run(whole) if name.endswith("_long") and name != "scratch_long"]
    scores = {key: score for key, score in linear.scores.items() if key[0] in heads}
    scores |= {key: score for key, score in whole.scores.items() if key[0] in networks}
    few, many = _TRAINABLE.values()
    parameters: dict[str, int | None] = {**dict.fromkeys(heads, few), **dict.fromkeys(networks, many)}
    shown = replace(linear, methods=[*heads, *networks], scores=scores, parameters=parameters)
    most = f"filled: {linear.amounts[-1].cases} labelled cases; bars: SD over seeds"
    draw_parameters(shown, heads[0], file, f"Heads: Dice and trainable parameters\n({most})")


def page(text: str) -> str:
    """The text with what stands between its markers made anew from the CSV files."""

    def renewed(block: re.Match[str]) -> str:
        made = table_text(TABLES[block["name"]]) if block["kind"] == "table" else probe_text(int(block["name"]))
        return f"{block[1]}\n{made}\n{block[4]}"

    return _BLOCK.sub(renewed, text)


def scores_file(name: str) -> Path:
    """Every score of a table."""
    return SCORES / f"pays_{name}.csv"


def figure_of(name: str) -> Path:
    """Dice against labelled cases of a table."""
    return FIGURES / f"results_{name}.png"


def add_scores(new: Path, kept: Path) -> None:
    """Put the trainings of a `results.csv` into the CSV of a table, in place of what it has of them."""
    if not new.is_file():
        return
    trainings: dict[tuple[str, ...], list[list[str]]] = {}
    for file in (kept, new):
        if file.is_file():
            of_file: dict[tuple[str, ...], list[list[str]]] = {}
            with open(file, newline="") as stream:
                for row in csv.DictReader(stream):
                    key = (row["method"], row["labelled_cases"], row["seed"])
                    of_file.setdefault(key, []).append([row[column] for column in COLUMNS])
            trainings |= of_file
    replace_file(kept, escape.csv_table(COLUMNS, [row for rows in trainings.values() for row in rows]).encode())


def read_scores(file: Path, table: Table) -> Results | None:
    """Scores of a `results.csv` in the order of the table's rows, others after them; None if there is no file.

    Raises:
        UserError: a score is given twice.
    """
    if not file.is_file():
        return None
    with open(file, newline="") as stream:
        rows = list(csv.DictReader(stream))
    planned = [row.name for row in table.rows]
    methods = [*planned, *dict.fromkeys(r["method"] for r in rows if r["method"] not in planned)]
    cases = sorted({row["case"] for row in rows})
    structures = list(dict.fromkeys(row["structure"] for row in rows))
    percents = {int(row["labelled_cases"]): float(row["percent"]) for row in rows}
    scores: dict[tuple[str, int, int], np.ndarray] = {}
    for row in rows:
        empty = np.full((2, len(cases), len(structures)), math.nan)
        table_of = scores.setdefault((row["method"], int(row["labelled_cases"]), int(row["seed"])), empty)
        place = (slice(None), cases.index(row["case"]), structures.index(row["structure"]))
        if not np.isnan(table_of[place]).all():
            raise UserError(f"{file} has two scores of {', '.join(list(row.values())[:6])}; remove one")
        table_of[place] = [float(row[key]) if row[key] else math.nan for key in ("dice", "nsd")]
    amounts = [Amount(n, percents[n]) for n in sorted(percents)]
    return Results(methods, amounts, table.seeds, cases, structures, {}, scores, dict.fromkeys(methods))


def table_text(table: Table) -> str:
    """A table with its title, command and figure; rows and tables that were not run say so."""
    results = read_scores(scores_file(table.name), table)
    parts = [f"## {table.title}", f"    python benchmarks/does_it_pay.py {table.name} -o OUT", *_told(table)]
    if results is None:
        return "\n\n".join([*parts, "Not run.", _not_run([row.name for row in table.rows])]) + "\n"
    baseline = _baseline(table, results)
    parts += [f"{caption(results, METRICS[0])} `{escape.markdown(baseline)}` is what the others are compared with.",
              *(_of_amount(table, results, baseline, amount) for amount in results.amounts),
              f"![Dice against labelled cases](figures/{figure_of(table.name).name})"]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _told(table: Table) -> Iterator[str]:
    if table.note:
        yield table.note
    if table.floors:
        yield f"Read the Dice against the floor, that of {table.floor}, which takes no look at the image."


def _baseline(table: Table, results: Results) -> str:
    """The table's, else the first row that has been run."""
    run = _run(results)
    return table.baseline if table.baseline in run else run[0]


def _run(results: Results) -> list[str]:
    return [m for m in results.methods if any(key[0] == m for key in results.scores)]


def _of_amount(table: Table, results: Results, baseline: str, amount: Amount) -> str:
    """One amount of labels: what was run, what was not, and the floor."""
    head = ["method", *results.structures, MEAN, f"ahead of {baseline}"]
    lines = ["| " + " | ".join(map(escape.markdown, head)) + " |", "|---|" + "---:|" * (len(head) - 1)]
    some = replace(results, amounts=[amount])
    counts = {len(results.seeds_of(method, cases=amount.cases)) for method in results.methods}
    bold = "**{}**" if counts <= {0, results.seeds} else "{}"  # a row that lacks seeds could still win
    made = {row[0]: row for _, *row in table_rows(some, differences(some, baseline), 0, escape.markdown, bold)}
    for method in results.methods:
        seeds = len(results.seeds_of(method, cases=amount.cases))
        name = escape.markdown(
            method if seeds in (0, results.seeds) else f"{method} ({seeds} of {results.seeds} seeds)"
        )
        row = made.get(name, [name, *[""] * len(results.structures), "", "not run"])
        lines.append("| " + " | ".join(row) + " |")
    if table.floors:
        floors = [table.floors.get(structure, math.nan) for structure in results.structures]
        shown = ["-" if math.isnan(value) else f"{value:.3f}" for value in [*floors, float(np.mean(floors))]]
        lines.append("| " + " | ".join([f"*floor: {table.floor}*", *shown, ""]) + " |")
    return f"**{amount.cases} labelled cases**\n\n" + "\n".join(lines)


def _not_run(names: Sequence[str]) -> str:
    return "\n".join(["| method | |", "|---|---|", *(f"| {escape.markdown(name)} | not run |" for name in names)])


def probe_text(source: int) -> str:
    """The probe's Dice of the pretrainings on a dataset."""
    curves = read_curves(SCORES, source)
    picture = [f"![Dice of the probe against steps](figures/results_probe_{source}.png)"] if curves else []
    return "\n\n".join([*picture, curves_table(curves, PRETRAINED)]) + "\n"
