"""Which windows of the held-out cases an evaluation looks at."""

from __future__ import annotations

from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from nnssl.geometry import Box
from nnssl.probing.cases import LabelledCases


class Window(NamedTuple):
    """A patch of a case."""

    case: str
    box: Box


class HeldOutWindows:
    """Windows of all held-out cases in the order of their worth: the cases take turns.

    Within a case those come first that hold most of its labels, every label counting the same.
    """

    def __init__(self, cases: LabelledCases) -> None:
        ordered = [[Window(case, box) for box in _by_worth(cases, case)] for case in cases.data.held_out]
        self._windows = [window for turn in zip_longest(*ordered) for window in turn if window is not None]
        self.least = len(ordered)

    def __len__(self) -> int:
        return len(self._windows)

    def first(self, count: int) -> list[Window]:
        """The first ones, at least one a case."""
        return self._windows[: max(count, self.least)]


def _by_worth(cases: LabelledCases, case: str) -> list[Box]:
    boxes, places = cases.windows(case), cases.places(case)
    worth = [
        -sum(float(np.mean(((voxels >= box.start) & (voxels < box.stop)).all(1))) for voxels in places) for box in boxes
    ]
    return [boxes[i] for i in np.argsort(worth, kind="stable")]
