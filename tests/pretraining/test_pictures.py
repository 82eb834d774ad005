from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text
from PIL import Image

from nnssl.methods.panel import Panel
from nnssl.pretraining import pictures
from nnssl.pretraining.overviews import Outline, Overview
from nnssl.pretraining.pictures import draw_panels, name_cases
from tests.pretraining.figures import kept_figures

pytestmark = pytest.mark.rendered


def test_draw_panels__everything_is_inside_and_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points at all corners, texts, and overviews with boxes that go beyond the volume; one figure for all."""
    figures = kept_figures(monkeypatch, pictures)
    corners = [(1, 0.0, 0.0), (2, 0.0, 19.0), (3, 19.0, 19.0), (4, 19.0, 0.0), (5, 10.0, 10.0), (6, 10.0, 11.0)]
    panel = Panel(np.zeros((20, 20), np.float32), "pair 1, view 1, slice 9 of 16", corners, boxes=[(1, 1, 5, 5)],
                  frames=[(0, 0, 3, 3)], texts=[("0.5", 4, 4)], crop=(0, 1, 0.5))  # fmt: skip
    outlines = [Outline(0, (1, 1, 4, 3), True, [(3, 1, 3, 4)]), Outline(1, (4, -2, 7, 5), False, [(6, -2, 6, 3)])]
    image, title = np.zeros((9, 7), np.float32), "a_case_with_a_long_name\ncoronal slice 3"
    where = Overview(image, title, outlines, (0.0, 1.0), 2.0, "RLSI", 70.0)
    draw_panels([[panel] * 3] * 2, tmp_path / "a.png", "vox2vec: views\ncase", [where, where])
    assert Image.open(tmp_path / "a.png").size[0] == 900
    (figure,) = figures
    page = figure.bbox
    above, *views = [axis for axis in _axes(figure) if axis.images]
    assert len(views) == 1 + 6
    for text in figure.findobj(Text):
        if text.get_text() and text.get_visible():
            box = text.get_window_extent()
            assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, text
    for axis in (above, *views):
        boxes = [text.get_window_extent() for text in axis.texts]
        assert not [(a, b) for a, b in combinations(range(len(boxes)), 2) if boxes[a].overlaps(boxes[b])]
    assert {text.get_text() for text in above.texts} == {*"RLS", "1", "2", "20 mm"}
    (legend,) = (legend for part in figure.subfigs for legend in part.legends)
    assert [text.get_text() for text in legend.get_texts()] == [
        "crop", "crop in front of this slice or behind it", "slice shown below", "same number, same place"
    ]  # fmt: skip
    solid, dashed = (patch.get_linestyle() for patch in above.patches)
    assert solid != dashed
    titles = [axis.title.get_window_extent() for axis in views[1:4]]
    assert not [(a, b) for a, b in combinations(range(3), 2) if titles[a].overlaps(titles[b])]


def _axes(figure: Any) -> list[Any]:
    return [axis for part in figure.subfigs for axis in part.axes]


@pytest.mark.parametrize("columns", [1, 6])
def test_draw_panels__is_900_pixels_wide(columns: int, tmp_path: Path) -> None:
    panel = Panel(np.zeros((20, 20), np.float32), "crop")
    draw_panels([[panel] * columns], tmp_path / "a.png", "title")
    assert Image.open(tmp_path / "a.png").size[0] == 900


def test_name_cases__with_the_dataset_once() -> None:
    assert (
        name_cases(["Dataset001_A/a", "Dataset001_A/b", "Dataset001_A/a", "Dataset001_A/c"], 3) == "Dataset001_A: a, b"
    )
    assert name_cases(["Dataset001_A/a", "Dataset002_B/b"], 2) == "Dataset001_A/a, Dataset002_B/b"
