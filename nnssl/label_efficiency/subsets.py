"""Nested, seeded subsets of the training cases, as folds of nnU-Net."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nnssl.errors import UserError

log = logging.getLogger("nnssl")


@dataclass(frozen=True)
class Amount:
    """How many training cases keep their labels; `percent` of all as it was asked for."""

    cases: int
    percent: float


@dataclass(frozen=True)
class Fold:
    """One training set: the first `cases` of the training cases in the order of `seed`."""

    number: int
    cases: int
    seed: int
    train: tuple[str, ...]


def amounts_of(
    total: int, fractions: Sequence[float] | None = None, cases: Sequence[int] | None = None
) -> list[Amount]:
    """Amounts in rising order; fractions that come to the same number of cases are merged, with a warning.

    Args:
        total: number of training cases.
        fractions: in percent, in (0, 100]; rounded up to whole cases (methods.md 3.5).
        cases: in [1, total], in place of fractions.

    Raises:
        UserError: a number is out of range, or there is none.
    """
    if cases:
        if wrong := [n for n in cases if not 1 <= n <= total]:
            raise UserError(f"-cases takes numbers from 1 to {total}, the number of training cases, not {wrong[0]}")
        return [Amount(n, 100 * n / total) for n in sorted(set(cases))]
    if not fractions:
        raise UserError("there is no amount of labels; type for example -fractions 5 10 20 50 100")
    if odd := [f for f in fractions if not 0 < f <= 100]:
        raise UserError(f"-fractions takes percentages above 0 and up to 100, not {odd[0]:g}")
    found: dict[int, float] = {}
    for fraction in sorted(set(fractions)):
        count = max(1, math.ceil(total * fraction / 100 - 1e-9))  # 0.07 * 100 is 7.000000000000001
        if count in found:
            log.warning(f"{fraction:g} % of {total} training cases are {count}, as many as {found[count]:g} %; "
                        f"{fraction:g} % is left out")  # fmt: skip
        found.setdefault(count, fraction)
    return [Amount(count, fraction) for count, fraction in found.items()]


def subset(training: Sequence[str], cases: int, seed: int) -> tuple[str, ...]:
    """The first `cases` of the training cases in the seed's order: a larger subset holds all smaller ones."""
    names = sorted(training)
    order = np.random.default_rng(seed).permutation(len(names))
    return tuple(names[i] for i in order[:cases])


def extend_folds(known: Sequence[Fold], training: Sequence[str], amounts: Sequence[Amount], seeds: int) -> list[Fold]:
    """The known folds and those that are still missing for all amounts and seeds; no fold changes its number."""
    folds = list(known)
    present = {(f.cases, f.seed) for f in folds}
    for seed in range(seeds):
        for amount in amounts:
            if (amount.cases, seed) not in present:
                train = subset(training, amount.cases, seed)
                folds.append(Fold(len(folds), amount.cases, seed, train))
    return folds


def draw_test_cases(cases: Sequence[str], percent: float) -> list[str]:
    """A share of the cases, at least one, always the same ones; sorted.

    Raises:
        UserError: nothing would be left for training.
    """
    names = sorted(cases)
    count = max(1, round(len(names) * percent / 100)) if 0 < percent < 100 else len(names)
    if count >= len(names):
        raise UserError(f"-test {percent:g} of {len(names)} labelled cases leaves none for training; take a smaller "
                        f"percentage")  # fmt: skip
    order = np.random.default_rng(_TEST_SEED).permutation(len(names))
    return sorted(names[i] for i in order[:count])


_TEST_SEED = 20_000  # not one of the training's seeds
