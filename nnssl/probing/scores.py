"""Dice of label maps, from counts."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nnssl.probing.data import Values


class DiceCounts:
    """Sums over the windows of one case.

    Args:
        values: of the label map, by class.
        labels: the values of each label by name.
    """

    def __init__(self, values: Values, labels: Mapping[str, Values]) -> None:
        self._confusion = np.zeros((len(values), len(values)), dtype=np.int64)  # truth, prediction
        self._members = {name: np.isin(values, of_label) for name, of_label in labels.items()}

    def add(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Classes of some voxels, in any shape; those whose truth is -1 do not count."""
        counted, size = truth >= 0, len(self._confusion)
        pairs = truth[counted] * size + predicted[counted]
        self._confusion += np.bincount(pairs, minlength=size * size).reshape(size, size)

    def dice(self) -> dict[str, float]:
        """2 |A and B| / (|A| + |B|) by label; NaN for a label that the case has not."""
        found = {}
        for name, member in self._members.items():
            truth, predicted = self._confusion[member].sum(), self._confusion[:, member].sum()
            both = self._confusion[np.ix_(member, member)].sum()
            found[name] = float(2 * both / (truth + predicted)) if truth else float("nan")
        return found


def mean_dice(cases: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each label over the cases that have it, and under "" the mean of those means; absent labels are left out.

    Args:
        cases: Dice by label.
    """
    names = list(cases[0]) if cases else []
    by_label = {}
    for name in names:
        known = [case[name] for case in cases if not np.isnan(case[name])]
        if known:
            by_label[name] = float(np.mean(known))
    return {"": float(np.mean(list(by_label.values()))), **by_label} if by_label else {}
