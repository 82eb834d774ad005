from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnssl.analysis import matches_page
from nnssl.analysis.matches_page import Found, draw_matches, fit_title
from nnssl.analysis.points import Landmarks
from nnssl.features.images import PreparedImage
from tests.analysis.images import geometry

SIZE = (6, 12, 10)


def _image(name: str) -> PreparedImage:
    return PreparedImage(name, np.zeros((1, *SIZE), np.float32), geometry(SIZE[::-1]))


@pytest.mark.parametrize("number", [1, 3])
def test_draw_matches__marked_and_clean_with_all_positions(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clean slices are beside the marked ones, or below them where there are many landmarks; mm are RAS as asked."""
    figures: list[Any] = []
    monkeypatch.setattr(matches_page, "save_page", lambda figure, file: figures.append(figure))
    points = np.array([[2.0, 3, 4], [3, 1, 5], [1, 2, 3]])[:number]
    names = tuple(f"structure_{n}" for n in range(number))
    landmarks = Landmarks(names, points)
    truth = points + np.array([0, 0, 1])
    found = Found(_image("b"), points, truth, np.full(number, 2.0), np.full(number, 0.75), np.zeros(number))
    draw_matches(_image("a"), landmarks, [found], "vox2vec", tmp_path / "m.png", ras=True)
    (figure,) = figures
    figure.draw_without_rendering()
    assert len(figure.axes) == 4 * number
    marked = [axis for axis in figure.axes if axis.lines[1:]]  # besides the scale bar
    clean = [axis for axis in figure.axes if axis not in marked]
    assert len(marked) == len(clean) == 2 * number and all(axis.get_xticks().size == 1 for axis in clean)
    titles = "\n".join(axis.get_title() for axis in figure.axes)
    world = found.image.geometry.grid_to_world(truth[0]) * [-1, -1, 1]
    for said in ("error 2.0 mm\nsimilarity 0.75", "truth {:.1f} {:.1f} {:.1f}".format(*world), "truth voxel 5 3 2"):
        assert said in titles
    assert "RAS" in figure.get_suptitle()
    boxes = [axis.title.get_window_extent() for axis in figure.axes]
    assert not [(a, b) for a, b in combinations(range(len(boxes)), 2) if boxes[a].overlaps(boxes[b])]
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_fit_title__in_lines_as_wide_as_the_column() -> None:
    assert fit_title("caudate_accumbens (left)", 1.75) == "caudate accumbens\n(left)"
    assert fit_title("caudate_accumbens (left)", 3.5) == "caudate accumbens (left)"
