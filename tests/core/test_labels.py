from __future__ import annotations

from itertools import combinations

import numpy as np

from nnssl.core.figures import new_figure
from nnssl.core.labels import Label, write_labels


def test_write_labels__inside_and_apart() -> None:
    """At all corners, in a narrow group, beside the axes' own text, and in the middle of an area."""
    figure = new_figure(2.2, 2.2)
    axis = figure.subplots()
    axis.imshow(np.zeros((20, 20)))
    axis.set_axis_off()
    axis.text(0.5, 0.98, "S", transform=axis.transAxes, va="top", ha="center")
    places = [(0, 0), (19, 0), (0, 19), (19, 19), (10, 10), (11, 10), (10, 12), (12, 12), (10, 1)]
    figure.draw_without_rendering()
    labels = [Label(str(n), float(column), float(row)) for n, (column, row) in enumerate(places)]
    write_labels(axis, [*labels, Label("organ", 4.0, 15.0, marked=False, centred=True)])
    frame, boxes = axis.get_window_extent(), [text.get_window_extent() for text in axis.texts]
    assert len(boxes) == 11
    for box in boxes:
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    assert not [(a, b) for a, b in combinations(range(11), 2) if boxes[a].overlaps(boxes[b])]
    np.testing.assert_allclose(axis.texts[-1].get_position(), (4, 15), atol=1e-6)
