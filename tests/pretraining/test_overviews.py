from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nnssl.methods.panel import Whereabouts
from nnssl.pretraining.overviews import overview

SIZE = np.array([6, 5, 7])
BOXES = np.array([[[1.0, 1, 2], [4, 4, 5]], [[0.0, 3, 3], [3, 5, 6]]])


@pytest.mark.parametrize(
    ("letters", "plane", "sides", "turned"),
    [
        ("SPL", "coronal", "RLSI", (True, False)),
        ("IAR", "coronal", "RLSI", (False, True)),
        ("PSL", "sagittal", "APSI", (True, False)),
        ("", "across axis 2", "", (False, False)),
    ],
)
def test_overview__outlines_are_on_the_voxels_that_they_hold(
    letters: str, plane: str, sides: str, turned: tuple[bool, bool]
) -> None:
    """The head is up, the patient's left or back on the right; the shown slices are lines."""
    values = np.random.default_rng(0).random(SIZE).astype(np.float32)

    def read(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        return values[tuple(map(slice, start, stop))][None]

    volume: Any = SimpleNamespace(size=SIZE, read=read, spacing=(3.0, 1.0, 2.0))
    drawn = overview(Whereabouts(0, BOXES, (0, 1)), volume, letters, "case", {(0, 0.5), (1, 1 / 6)})
    assert drawn.title.startswith("case\n") and plane in drawn.title and drawn.sides == sides
    across = 2 if plane == "sagittal" else 1
    for outline, (first, stop) in zip(drawn.outlines, BOXES.astype(int), strict=True):
        row, column, height, width = map(int, outline.box)
        middle = int(BOXES[0, :, across].mean())
        box = [slice(*ends) for ends in zip(first, stop, strict=True)]
        box[across] = slice(middle, middle + 1)
        there: Any = values[tuple(box)].take(0, across)
        if across == 2:  # the first axis is from left to right
            there = there.T
        there = there[:: -1 if turned[0] else 1, :: -1 if turned[1] else 1]
        shown = drawn.image[row : row + height, column : column + width]
        np.testing.assert_array_equal(shown, there)
        assert outline.cut == (first[across] <= middle < stop[across])
        ((from_row, from_column, to_row, to_column),) = outline.slices
        assert (from_row == to_row) == (across == 1) and (from_column == to_column) == (across == 2)
        assert row <= from_row <= to_row <= row + height and column <= from_column <= to_column <= column + width


def test_overview__many_crops_have_no_lines_and_an_array_has_no_scale() -> None:
    values = np.zeros(SIZE, dtype=np.float32)
    own = Whereabouts(0, np.repeat(BOXES, 3, 0), range(6), image=values)
    volume: Any = SimpleNamespace(size=SIZE, read=lambda start, stop: values[:, 2:3][None], spacing=(1.0, 1.0, 1.0))
    drawn = overview(own, volume, "SPL", "body: case", {(0, 0.5)})
    assert len(drawn.outlines) == 6 and not any(outline.slices for outline in drawn.outlines)
    assert drawn.width_mm is None
