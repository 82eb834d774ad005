from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

from nnssl.label_efficiency.statistics import differences
from nnssl.label_efficiency.tables import latex, markdown, write_tables
from tests.label_efficiency.test_statistics import made_up


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


def test_names__with_signs_that_mean_something() -> None:
    results = replace(made_up(), structures=["lung_left & 50%", r"$a^2 {b}~\c|d"])
    assert r"lung\_left \& 50\% & \$a\textasciicircum{}2 \{b\}\textasciitilde{}\textbackslash{}c|d & mean" in latex(
        results, [], "base"
    )
    head = markdown(results, [], "base").splitlines()[4]
    assert r"\c\|d | mean" in head


def test_write_tables__a_row_a_score(tmp_path: Path) -> None:
    results = made_up()
    write_tables(results, differences(results, "base"), "base", tmp_path)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["comparison.csv", "results.csv", "results.md", "results.tex"]
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert len(rows) == 2 * 2 * 2 * 6 * 2 and len({tuple(r.items()) for r in rows}) == len(rows)
    row = next(r for r in rows if (r["method"], r["labelled_cases"], r["seed"], r["case"], r["structure"]) ==
               ("good", "10", "1", "case_3", "spleen"))  # fmt: skip
    assert float(row["nsd"]) == round(results.scores["good", 10, 1][1, 3, 1], 6) and row["percent"] == "100.0"
