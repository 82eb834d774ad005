"""A picture of what a method sees or makes, as plain numbers; `nnssl.pretraining` draws it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass
class Panel:
    """One picture of `views.png`: an image (rows, columns) with numbered points (row, column) and boxes.

    Boxes are (row, column, height, width) in pixels, each in its own colour; `frames` are thin white boxes below them,
    such as a grid. `texts` are (text, row, column of the centre). `aspect` is the height of a pixel over its width.
    """

    image: np.ndarray
    title: str
    points: Sequence[tuple[int, float, float]] = ()
    boxes: Sequence[tuple[float, float, float, float]] = ()
    aspect: float = 1.0
    values: tuple[float, float] | None = None  # black and white point; None: the image's own range
    frames: Sequence[tuple[float, float, float, float]] = ()
    texts: Sequence[tuple[str, float, float]] = ()
