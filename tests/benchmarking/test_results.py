from __future__ import annotations

import csv
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nnssl.benchmarking.plots import draw_labels, draw_parameters
from nnssl.benchmarking.results import Results, bootstrap, cells, differences, seed_means, winners
from nnssl.benchmarking.subsets import Amount
from nnssl.benchmarking.tables import latex, markdown, write_tables

FEW, ALL = Amount(2, 20.0), Amount(10, 100.0)


def made_up(seeds: int = 3, gain: float = 0.1, cases: int = 9) -> Results:
    """`good` is better than `base` by `gain` in every case of the first structure, however much cases differ."""
    rng = np.random.default_rng(0)
    scores = {}
    for amount in (FEW, ALL):
        for seed in range(seeds):
            base = rng.uniform(0.2, 0.8, (2, cases, 2))
            scores["base", amount.cases, seed] = base
            scores["good", amount.cases, seed] = base + np.array([gain, 0])
    parameters: dict[str, int | None] = {"base": 1331, "good": 351152}
    return Results(["base", "good"], [FEW, ALL], seeds, [f"case_{i}" for i in range(cases)], ["liver", "spleen"],
                   {"liver": 2.0, "spleen": 2.0}, scores, parameters)  # fmt: skip


def test_bootstrap__against_scipy() -> None:
    from scipy.stats import bootstrap as scipys

    values = np.random.default_rng(3).normal(0.1, 0.05, 30)
    mean, low, high = bootstrap(values)
    interval = scipys((values,), np.mean, method="percentile", n_resamples=10_000, rng=1).confidence_interval
    assert mean == pytest.approx(values.mean()) and (low, high) == pytest.approx(tuple(interval), abs=1.5e-3)
    assert bootstrap(values) == (mean, low, high)


def test_bootstrap__excluded_cases() -> None:
    assert bootstrap(np.array([0.5, math.nan, 0.5])) == (0.5, 0.5, 0.5)
    assert all(map(math.isnan, bootstrap(np.array([math.nan]))))


def test_differences__pairs_the_cases() -> None:
    found = differences(made_up(), "base")
    assert len(found) == 2 * 2 * 3  # amounts, metrics, structures and their mean
    liver, spleen, mean = found[:3]
    # unpaired, the interval would be as wide as the cases differ
    assert (liver.mean, liver.low, liver.high) == pytest.approx((0.1, 0.1, 0.1))
    assert (spleen.mean, spleen.low, spleen.high) == pytest.approx((0, 0, 0), abs=1e-12)
    assert mean.structure == "mean" and mean.mean == pytest.approx(0.05) and (mean.seeds, mean.seeds_ahead) == (3, 3)


def test_differences__only_seeds_that_both_have() -> None:
    results = made_up()
    del results.scores["good", 2, 1]
    for seed in range(3):
        del results.scores["base", 10, seed]
    results.scores["base", 2, 0][:] = 0.9
    found = differences(results, "base")
    assert {d.cases for d in found} == {2} and {(d.seeds, d.seeds_ahead) for d in found if d.structure == "liver"} == {
        (2, 1)
    }
    assert all(math.isnan(d.low) and math.isnan(d.high) and not math.isnan(d.mean) for d in found)


@pytest.mark.parametrize(("seeds", "cases"), [(3, 7), (2, 8)])
def test_tables__no_interval_and_no_winner_from_few(tmp_path: Path, seeds: int, cases: int) -> None:
    results = made_up(seeds, cases=cases)
    ahead = differences(results, "base")
    assert all(math.isnan(d.low) for d in ahead) and winners(results, 2, 0) == [None] * 3
    text = markdown(results, ahead, "base")
    reason = "7 of at least 8 test cases" if cases < 8 else "2 of at least 3 seeds"
    assert f"No interval and no winner: {reason}." in text and "**" not in text and "[" not in text
    write_tables(results, ahead, "base", tmp_path)
    rows = list(csv.DictReader((tmp_path / "comparison.csv").open()))
    assert {(row["low"], row["high"]) for row in rows} == {("", "")} and all(row["mean"] for row in rows)


def test_winners__ahead_of_every_other_row() -> None:
    results = made_up()
    assert winners(results, 2, 0) == ["good", None, "good"]
    rng = np.random.default_rng(1)
    for seed in range(3):
        results.scores["same", 2, seed] = results.scores["good", 2, seed] + rng.normal(0, 0.01, (2, 9, 2))
    assert winners(replace(results, methods=["base", "good", "same"]), 2, 0) == [None] * 3
    del results.scores["same", 2, 0]
    for seed in (1, 2):
        results.scores["same", 2, seed] -= 0.5
    assert winners(replace(results, methods=["base", "good", "same"]), 2, 0) == ["good", None, "good"]
    results.scores["lucky", 2, 0] = results.scores["good", 2, 0] + 0.5
    assert winners(replace(results, methods=["base", "good", "lucky"]), 2, 0) == ["good", None, "good"]
    del results.scores["good", 2, 0]
    assert winners(results, 2, 0) == [None] * 3


def test_winners__of_ties_and_absent_structures() -> None:
    results = made_up(gain=0.0)
    assert winners(results, 2, 0) == [None] * 3
    results = made_up()
    for seed in range(3):
        for method in ("base", "good"):
            results.scores[method, 2, seed][..., 1] = math.nan
        results.scores["good", 2, seed][:, 0, 0] = math.nan
    assert winners(results, 2, 0) == ["good", None, "good"]


def test_cells__deviation_of_the_seeds_means() -> None:
    results = made_up()
    means = np.stack([results.scores["base", 2, s][0] for s in range(3)]).mean(1)  # (seeds, structures)
    liver, _, mean = cells(results, "base", 2, 0) or []
    assert liver == pytest.approx((means[:, 0].mean(), means[:, 0].std(ddof=1)))
    assert mean == pytest.approx((means.mean(), means.mean(1).std(ddof=1)))
    assert math.isnan((cells(made_up(seeds=1), "base", 2, 0) or [])[0][1])
    results.scores.clear()
    assert cells(results, "base", 2, 0) is None


def test_seed_means__one_a_seed() -> None:
    results = made_up()
    expected = [results.scores["good", 10, s][0].mean() for s in range(3)]
    assert seed_means(results, "good", 10) == pytest.approx(expected)
    results.scores["good", 10, 1][:] = math.nan
    assert seed_means(results, "good", 10) == pytest.approx([expected[0], expected[2]])


def test_markdown__rows_are_methods_and_columns_structures() -> None:
    results = made_up()
    for key in results.scores:
        results.scores[key][:] = 0.5 + 0.1 * (key[0] == "good")
    text = markdown(results, differences(results, "base"), "base")
    lines = text.splitlines()
    assert lines[0] == "### Dice" and "standard deviation of the 3 seeds' means over 9 test cases" in lines[2]
    assert lines[4] == "| labelled cases | method | liver | spleen | mean | ahead of base |"
    assert lines[5].count("|") == lines[4].count("|")
    assert lines[6] == "| 2 (20 %) | base | 0.500 ± 0.000 | 0.500 ± 0.000 | 0.500 ± 0.000 |  |"
    best = "**0.600 ± 0.000**"
    assert lines[7] == f"| 2 (20 %) | good | {best} | {best} | {best} | +0.100 [+0.100, +0.100], 3 of 3 seeds |"
    assert "### Surface Dice" in text and "Tolerance 2 mm" in text


def test_markdown__says_what_is_missing() -> None:
    results = made_up()
    del results.scores["good", 10, 1]
    for seed in range(3):
        results.scores["base", 2, seed][:] = 0
    text = markdown(results, differences(results, "base"), "base")
    assert "| good (2 of 3 seeds) |" in text and "| 2 (20 %) | base | 0.000" in text


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
    assert len(rows) == 2 * 2 * 3 * 9 * 2 and len({tuple(r.items()) for r in rows}) == len(rows)
    row = next(r for r in rows if (r["method"], r["labelled_cases"], r["seed"], r["case"], r["structure"]) ==
               ("good", "10", "1", "case_3", "spleen"))  # fmt: skip
    assert float(row["nsd"]) == round(results.scores["good", 10, 1][1, 3, 1], 6) and row["percent"] == "100.0"


@pytest.mark.parametrize("draw", [draw_labels, draw_parameters])
def test_draw__also_what_is_incomplete(tmp_path: Path, draw) -> None:  # type: ignore[no-untyped-def]
    results = made_up(seeds=1)
    results.scores.pop(("good", 10, 0))
    results.parameters["base"] = None
    draw(results, "base", tmp_path / "x.png", "title")
    assert [f.name for f in tmp_path.iterdir()] == ["x.png"] and (tmp_path / "x.png").stat().st_size > 5000
    scores = {("$x_{$", cases, seed): tables for (_, cases, seed), tables in results.scores.items()}
    draw(replace(results, methods=["$x_{$"], scores=scores, parameters={"$x_{$": 5}), "$x_{$", tmp_path / "y.png", "")
