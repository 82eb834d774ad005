"""Scores of the finished trainings, as arrays that statistics and tables start from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnssl.benchmarking.evaluation_report import MEAN, known_mean, mean_and_deviation
from nnssl.benchmarking.subsets import Amount

RESAMPLES = 10_000
_SEED = 0
_QUANTILES = (0.025, 0.975)


@dataclass(frozen=True)
class Results:
    """What exists so far.

    Args:
        methods: names, in the order of the tables; some may have no results yet.
        amounts: of labels, rising.
        seeds: how many were asked for.
        cases: of the test set.
        structures: names.
        tolerances: of the surface Dice in mm, by structure.
        scores: by (method, number of cases, seed): (metric, case, structure) with Dice first and surface Dice second;
            NaN where a structure is excluded.
        parameters: trainable ones by method; None where no training is finished or it keeps no state of its parameters.
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
        """Seeds that all these methods have finished with so many labelled cases."""
        return [s for s in range(self.seeds) if all((m, cases, s) in self.scores for m in methods)]

    def by_case(self, method: str, cases: int, metric: int, seeds: Sequence[int]) -> np.ndarray:
        """(test cases, structures + 1), mean over the seeds; the last column is the mean over the structures."""
        tables = [self.scores[method, cases, seed][metric] for seed in seeds]
        return known_mean(np.stack([np.column_stack([table, known_mean(table, 1)]) for table in tables]), 0)


@dataclass(frozen=True)
class Cell:
    """Mean over the test cases and their standard deviation (n - 1; NaN of a single case)."""

    mean: float
    deviation: float


@dataclass(frozen=True)
class Difference:
    """How far a method is ahead of the baseline: the mean over the test cases, and its 95 % interval.

    Args:
        method: name.
        percent: of the labels.
        cases: with labels.
        structure: name, or `mean`.
        metric: `dice` or `nsd`.
        mean: over test cases.
        low: end of the interval.
        high: end of the interval.
        seeds: that both have finished.
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


def cells(results: Results, method: str, cases: int, metric: int) -> list[Cell] | None:
    """Of every structure and of their mean, with the seeds averaged case by case; None where nothing is finished."""
    seeds = results.seeds_of(method, cases=cases)
    if not seeds:
        return None
    return [Cell(*mean_and_deviation(column)) for column in results.by_case(method, cases, metric, seeds).T]


def differences(results: Results, baseline: str) -> list[Difference]:
    """All methods against the baseline, for both metrics and every structure, from the seeds that both have."""
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
    """Mean of the values and the 95 % percentile interval of the means of samples drawn from them with replacement.

    The same seed draws the same cases for every method and structure: all are compared on the same samples.

    Args:
        values: one a test case; NaN does not count.
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
    """Mean over test cases and structures of every finished seed."""
    return [
        float(np.nanmean(results.by_case(method, cases, metric, [seed])[:, -1]))
        for seed in results.seeds_of(method, cases=cases)
    ]
