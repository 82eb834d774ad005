"""A picture of what a method sees or makes, as plain numbers; `nnssl.pretraining` draws it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass
class Panel:
    """One picture of `views.png`: an image (rows, columns) with numbered points (row, column) and boxes.

    Boxes are (row, column, height, width) in pixels, each in its own colour; `frames` are thin white boxes below them,
    such as a grid. `texts` are (text, row, column of the centre). `aspect` is the height of a pixel over its width.

    `crop` says what the picture shows: the number of a sample, of its crop, and where its slice is in this crop, from 0
    to 1 along the first axis. The picture is then framed in the colour that the crop's box has in the overview.
    `colour` frames it in the colour of another picture's box of this number.
    """

    image: np.ndarray
    title: str
    points: Sequence[tuple[int, float, float]] = ()
    boxes: Sequence[tuple[float, float, float, float]] = ()
    aspect: float = 1.0
    values: tuple[float, float] | None = None  # black and white point; None: the image's own range
    frames: Sequence[tuple[float, float, float, float]] = ()
    texts: Sequence[tuple[str, float, float]] = ()
    crop: tuple[int, int, float] | None = None
    colour: int | None = None


@dataclass(frozen=True)
class Whereabouts:
    """Crops of one volume of a batch, for the overview above its pictures.

    Args:
        sample: number of the sample that the crops are of.
        boxes: (K, 2, 3) first voxels and ends in the volume, or in `image`.
        crops: (K,) numbers of the crops, as in `Panel.crop`.
        volume: number of the volume among those of the run, where it is not the sample's own.
        image: (Z, Y, X), where the crops are cut out of it and not out of the preprocessed volume.
        name: of the crops, for the title.
    """

    sample: int
    boxes: np.ndarray
    crops: Sequence[int]
    volume: int | None = None
    image: np.ndarray | None = None
    name: str = ""

    @classmethod
    def of_boxes(cls, boxes: Tensor | None) -> list[Whereabouts]:
        """Of crops (B, K, 2, 3) of each sample's own volume; none without them."""
        return [] if boxes is None else [cls(i, own, range(len(own))) for i, own in enumerate(boxes.double().numpy())]
