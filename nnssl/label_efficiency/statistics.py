"""Mean and deviation over test cases, and paired bootstrap intervals of a difference."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nnssl.label_efficiency.results import MEAN, Results

RESAMPLES = 10_000
_SEED = 0
_QUANTILES = (0.025, 0.975)


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
    return [_cell(column) for column in results.by_case(method, cases, metric, seeds).T]


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


def _cell(column: np.ndarray) -> Cell:
    known = column[~np.isnan(column)]
    return Cell(
        float(known.mean()) if len(known) else math.nan, float(known.std(ddof=1)) if len(known) > 1 else math.nan
    )
