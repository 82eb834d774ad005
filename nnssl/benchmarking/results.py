"""Scores of the finished trainings, and what can be said of them: spread over seeds, leads and their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from nnssl.benchmarking.evaluation_report import MEAN, known_mean, mean_and_deviation
from nnssl.benchmarking.subsets import Amount

FEWEST_CASES, FEWEST_SEEDS = 8, 3  # for an interval: with fewer it is narrow by luck
RESAMPLES = 10_000
_SEED = 0
_QUANTILES = (0.025, 0.975)
KEYS = ("dice", "nsd")


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
        low, high: ends of its 95 % interval over the test cases; NaN with too few of them, or of seeds.
        seeds: number of seeds that both have finished.
        seeds_ahead: number of those in which the method has the higher mean.
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
    seeds_ahead: int


def cells(results: Results, method: str, cases: int, metric: int) -> list[tuple[float, float]] | None:
    """Mean, and standard deviation of the seeds' means, of every structure and of their mean.

    The deviation (n - 1) of a single seed is NaN; None if nothing is finished.
    """
    seeds = results.seeds_of(method, cases=cases)
    if not seeds:
        return None
    means = [_means(results, method, cases, metric, seed) for seed in seeds]
    deviations = (mean_and_deviation(column)[1] for column in np.array(means).T)
    whole = known_mean(results.by_case(method, cases, metric, seeds), 0)
    return [(float(mean), deviation) for mean, deviation in zip(whole, deviations, strict=True)]


def too_few(cases: int, seeds: int) -> str:
    """Why there is no interval, as a sentence; empty where there is one."""
    of_cases = f"{cases} of at least {FEWEST_CASES} test cases" if cases < FEWEST_CASES else ""
    of_seeds = f"{seeds} of at least {FEWEST_SEEDS} seeds" if seeds < FEWEST_SEEDS else ""
    reasons = " and ".join(filter(None, (of_cases, of_seeds)))
    return f"No interval and no winner: {reasons}." if reasons else ""


def leads(results: Results, method: str, other: str, cases: int, metric: int) -> list[tuple[float, float, float]]:
    """Lead over another method with the seeds that both have: mean over the test cases, low and high end.

    One of every structure, then that of their mean. Seeds are averaged case by case. The ends are NaN where `too_few`.
    """
    seeds = results.seeds_of(method, other, cases=cases)
    pair = [results.by_case(m, cases, metric, seeds) for m in (method, other)]
    columns = np.subtract(*pair).T
    if too_few(len(results.cases), len(seeds)):
        return [(float(known_mean(column, 0)), math.nan, math.nan) for column in columns]
    return [bootstrap(column) for column in columns]


def differences(results: Results, baseline: str) -> list[Difference]:
    """Compare all methods with the baseline, for both metrics and every structure, with the seeds that both have."""
    found = []
    for amount in results.amounts:
        for method in results.methods:
            seeds = results.seeds_of(method, baseline, cases=amount.cases)
            if method == baseline or not seeds:
                continue
            for metric, key in enumerate(KEYS):
                of_seeds = [_means(results, method, amount.cases, metric, seed)
                            > _means(results, baseline, amount.cases, metric, seed) for seed in seeds]  # fmt: skip
                found += [
                    Difference(method, amount.percent, amount.cases, structure, key, *lead, len(seeds), int(ahead))
                    for structure, lead, ahead in zip(
                        [*results.structures, MEAN],
                        leads(results, method, baseline, amount.cases, metric),
                        np.sum(of_seeds, 0),
                        strict=True,
                    )
                ]
    return found


def winners(results: Results, cases: int, metric: int) -> list[str | None]:
    """The highest mean of every structure, and of their mean, if its lead over each other one has an interval above 0.

    None where it has none. Rows that lack a seed are neither winners nor compared, and nothing is with `too_few`.
    """
    methods = [m for m in results.methods if len(results.seeds_of(m, cases=cases)) == results.seeds]
    means = {m: known_mean(results.by_case(m, cases, metric, results.seeds_of(m, cases=cases)), 0) for m in methods}
    found: list[str | None] = []
    for column in range(len(results.structures) + 1):
        known = [m for m in methods if not math.isnan(means[m][column])]
        best = max((float(means[m][column]), m) for m in known)[1] if known else ""
        lows = [leads(results, best, m, cases, metric)[column][1] for m in known if m != best]
        found.append(best if lows and all(low > 0 for low in lows) else None)
    return found


def _means(results: Results, method: str, cases: int, metric: int, seed: int) -> np.ndarray:
    return known_mean(results.by_case(method, cases, metric, [seed]), 0)


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
    times = _times_drawn(len(values), resamples, seed)
    counts = times @ known
    means = (times @ np.where(known, values, 0))[counts > 0] / counts[counts > 0]
    low, high = np.quantile(means, _QUANTILES)
    return float(values[known].mean()), float(low), float(high)


@lru_cache(maxsize=1)
def _times_drawn(size: int, resamples: int, seed: int) -> np.ndarray:
    """(resamples, size): how often each value is in each sample."""
    drawn = np.random.default_rng(seed).integers(0, size, (resamples, size))
    places = drawn + size * np.arange(resamples)[:, None]
    return np.bincount(places.ravel(), minlength=resamples * size).reshape(resamples, size).astype(float)


def seed_means(results: Results, method: str, cases: int, metric: int = 0) -> list[float]:
    """Mean over test cases and structures for each finished seed that has a score."""
    seeds = results.seeds_of(method, cases=cases)
    means = [float(_means(results, method, cases, metric, seed)[-1]) for seed in seeds]
    return [mean for mean in means if not math.isnan(mean)]
