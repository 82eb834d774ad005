"""Short texts in images that neither overlap nor leave the image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nnssl.core.figures import halo

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

_AWAY = (7.0, 13.0)  # points between a place and the edge of its text
_MARK = 4.0  # points, half of a ring
_OUTSIDE = 20.0  # what a share of a text outside of the image costs, against a share that is covered


@dataclass(frozen=True)
class Label:
    """A text at a place of an image.

    Args:
        text: to write.
        column: of the place, in the axes' data coordinates.
        row: of the place.
        colour: of the letters.
        size: in points.
        marked: whether a ring is around the place, which other texts leave free.
        centred: whether the text may be at the place itself, as that of an area.
    """

    text: str
    column: float
    row: float
    colour: str = "white"
    size: float = 10.0
    marked: bool = True
    centred: bool = False


def write_labels(axis: Axes, labels: Sequence[Label]) -> None:
    """Write texts beside their places, each where it covers least of the others, of rings and of the axes' own texts.

    The figure's layout must be final, as after `figure.draw_without_rendering()`.

    Args:
        axis: with an image.
        labels: the first ones choose first.
    """
    frame = _box(axis.get_window_extent())
    assert axis.figure is not None
    point = axis.figure.dpi / 72
    taken = [_box(text.get_window_extent()) for text in axis.texts]
    places = [axis.transData.transform((label.column, label.row)) for label in labels]
    rings = [_around(place, _MARK * point) for place, label in zip(places, labels, strict=True) if label.marked]
    for place, label in zip(places, labels, strict=True):
        text = _text(axis, label)
        size = np.asarray(_box(text.get_window_extent())).reshape(2, 2)
        size = size[1] - size[0] + 2
        middles = [place] * label.centred + list(_candidates(place, size, point))
        boxes = [np.concatenate([middle - size / 2, middle + size / 2]) for middle in middles]
        costs = [_cost(box, frame, [*taken, *rings]) + 0.001 * n for n, box in enumerate(boxes)]
        best = int(np.argmin(costs))
        inside = np.clip(middles[best], frame[:2] + size / 2, frame[2:] - size / 2)
        column, row = axis.transData.inverted().transform(inside)
        text.set_position((float(column), float(row)))
        taken.append(np.concatenate([inside - size / 2, inside + size / 2]))


def _text(axis: Axes, label: Label) -> Text:
    text = axis.text(label.column, label.row, label.text, color=label.colour, fontsize=label.size, fontweight="bold",
                     ha="center", va="center", path_effects=halo())  # fmt: skip
    text.set_in_layout(False)
    return text


def _candidates(place: Any, size: Any, point: float) -> Iterator[Any]:
    """Middles of a text around a place: right above it first, as on maps, then the other sides, then farther away."""
    for away in _AWAY:
        for side in ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1)):
            near = 0.6 if all(side) else 1.0
            yield place + np.asarray(side) * (size / 2 + near * away * point)


def _box(extent: Any) -> Any:
    return np.array([extent.x0, extent.y0, extent.x1, extent.y1])


def _around(place: Any, half: float) -> Any:
    return np.concatenate([place - half, place + half])


def _cost(box: Any, frame: Any, taken: Sequence[Any]) -> float:
    """How much of a text is outside or over others, as shares of its area."""
    area = float(np.prod(box[2:] - box[:2]))
    outside = 1 - _common(box, frame) / area
    return _OUTSIDE * outside + sum(_common(box, other) for other in taken) / area


def _common(a: Any, b: Any) -> float:
    return float(np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0)))
