from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

from nnssl.benchmarking.results import differences
from nnssl.benchmarking.tables import latex, markdown, write_tables
from tests.benchmarking.test_statistics import made_up


def test_markdown__rows_are_methods_and_columns_structures() -> None:
    results = made_up()
    for key in results.scores:
        results.scores[key][:] = 0.5 + 0.1 * (key[0] == "good")
    text = markdown(results, differences(results, "base"), "base")
    lines = text.splitlines()
    assert lines[0] == "### Dice" and "6 test cases, each the mean of 2 seeds" in lines[2]
    assert lines[4] == "| labelled cases | method | liver | spleen | mean | ahead of base |"
    assert lines[5].count("|") == lines[4].count("|")
    assert lines[6] == "| 2 (20 %) | base | 0.500 ± 0.000 | 0.500 ± 0.000 | 0.500 ± 0.000 |  |"
    best = "**0.600 ± 0.000**"
    assert lines[7] == f"| 2 (20 %) | good | {best} | {best} | {best} | +0.100 [+0.100, +0.100] |"
    assert "### Surface Dice" in text and "Tolerance 2 mm" in text


def test_markdown__says_what_is_missing() -> None:
    results = made_up()
    del results.scores["good", 10, 1]
    results.scores["base", 2, 0][:] = results.scores["base", 2, 1][:] = 0
    text = markdown(results, differences(results, "base"), "base")
    assert "| good (1 of 2 seeds) |" in text and "| 2 (20 %) | base | 0.000" in text


def test_latex__compiles_to_the_same_numbers() -> None:
    results = made_up()
    text = latex(results, differences(results, "base"), "base")
    assert text.count(r"\begin{tabular}{llcccc}") == text.count(r"\end{table}") == 2
    assert r"2 (20 \%) & base & " in text and r" $\pm$ " in text and "±" not in text
    assert text.count(r"\midrule") == 4 and r"[+" in text and r"\textbf{" in text
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert all(line.count(" & ") == 5 for line in body) and len(body) == 2 * (1 + 4)


def test_names__with_signs_that_mean_something(tmp_path: Path) -> None:
    results = made_up()
    odd = {"base": "a|b", "good": r"\textbf{x_1&2%"}
    results = replace(
        results,
        structures=["lung_left & 50%", r"$a^2 {b}~\c|d"],
        methods=list(odd.values()),
        cases=["=cmd()", *results.cases[1:]],
        scores={(odd[method], cases, seed): tables for (method, cases, seed), tables in results.scores.items()},
        tolerances={"<b>": 1.0, "x": 2.0},
    )
    ahead = differences(results, "a|b")
    text = latex(results, ahead, "a|b")
    first, second = r"lung\_left \& 50\%", r"\$a\textasciicircum{}2 \{b\}\textasciitilde{}\textbackslash{}c\textbar{}d"
    assert rf"{first} & {second} & mean & ahead of a\textbar{{}}b \\" in text
    assert r"& \textbackslash{}textbf\{x\_1\&2\% & " in text and r"\textless{}b\textgreater{} 1" in text
    lines = markdown(results, ahead, "a|b").splitlines()
    assert lines[4] == r"| labelled cases | method | lung_left &amp; 50% | \$a^2 {b}\~\\c\|d | mean | ahead of a\|b |"
    rows = [line for line in lines if line.startswith("| 2 (20 %)")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 7 for row in rows)
    assert [row.split(" | ")[1] for row in rows[:2]] == [r"a\|b", r"\\textbf{x_1&amp;2%"]
    assert "&lt;b&gt; 1" in "".join(lines)
    write_tables(results, ahead, "a|b", tmp_path)
    table = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert {row["method"] for row in table} == set(odd.values()) and "'=cmd()" in {row["case"] for row in table}
    assert {row["structure"] for row in table} == set(results.structures)


def test_write_tables__a_row_a_score(tmp_path: Path) -> None:
    results = made_up()
    write_tables(results, differences(results, "base"), "base", tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["comparison.csv", "results.csv", "results.md", "results.tex"]
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert len(rows) == 2 * 2 * 2 * 6 * 2 and len({tuple(r.items()) for r in rows}) == len(rows)
    row = next(r for r in rows if (r["method"], r["labelled_cases"], r["seed"], r["case"], r["structure"]) ==
               ("good", "10", "1", "case_3", "spleen"))  # fmt: skip
    assert float(row["nsd"]) == round(results.scores["good", 10, 1][1, 3, 1], 6) and row["percent"] == "100.0"
