from __future__ import annotations

import math

import numpy as np
import pytest

from nnssl.benchmarking.results import Results, bootstrap, cells, differences, seed_means
from nnssl.benchmarking.subsets import Amount

FEW, ALL = Amount(2, 20.0), Amount(10, 100.0)


def made_up(seeds: int = 2, gain: float = 0.1, cases: int = 6) -> Results:
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
    assert mean.structure == "mean" and mean.mean == pytest.approx(0.05) and mean.seeds == 2


def test_differences__only_seeds_that_both_have() -> None:
    results = made_up()
    del results.scores["good", 2, 1]
    del results.scores["base", 10, 0], results.scores["base", 10, 1]
    results.scores["base", 2, 0][:] = 0.3
    found = differences(results, "base")
    assert {d.cases for d in found} == {2} and {d.seeds for d in found} == {1}


def test_cells__deviation_over_cases_after_the_mean_over_seeds() -> None:
    results = made_up()
    tables = np.stack([results.scores["base", 2, s][0] for s in (0, 1)]).mean(0)
    liver, _, mean = cells(results, "base", 2, 0) or []
    assert liver.mean == pytest.approx(tables[:, 0].mean())
    assert liver.deviation == pytest.approx(tables[:, 0].std(ddof=1))
    assert mean.deviation == pytest.approx(tables.mean(1).std(ddof=1))
    assert math.isnan((cells(made_up(cases=1), "base", 2, 0) or [])[0].deviation)
    results.scores.clear()
    assert cells(results, "base", 2, 0) is None


def test_seed_means__one_a_seed() -> None:
    results = made_up()
    expected = [results.scores["good", 10, s][0].mean() for s in (0, 1)]
    assert seed_means(results, "good", 10) == pytest.approx(expected)
