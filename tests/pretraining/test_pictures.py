from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Annotation
from PIL import Image

from nnssl.core.figures import new_figure
from nnssl.methods.panel import Panel
from nnssl.pretraining import pictures
from nnssl.pretraining.pictures import draw_panels, draw_progress

pytestmark = pytest.mark.rendered


def _row(epoch: int, **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "loss": 1.0 / epoch, "embedding_std": 0.1, "embedding_dim": 16, "learning_rate": 1e-3,
            "samples_per_second": 2.0, "data_wait": 0.1, **more}  # fmt: skip


def test_draw_progress__shows_what_the_rows_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first row is of an earlier version, the probe is due every other epoch, and there is no validation."""
    figures: list[Any] = []
    save = pictures.save_figure

    def kept(figure: Any, file: Path, **_: Any) -> None:
        figures.append(figure)
        save(figure, file)

    monkeypatch.setattr(pictures, "save_figure", kept)
    probed = {"probe_linear_dice": 0.5, "probe_nonlinear_dice": 0.25, "probe_linear_dice_left kidney/cyst": 0.5}
    rows = [_row(1), _row(2, effective_rank=3.0, **probed), _row(3, effective_rank=4.0), _row(4, **probed)]
    draw_progress(rows, tmp_path / "progress.png", "run")
    (figure,) = figures
    drawn = {axis.get_ylabel(): [list(line.get_xdata()) for line in axis.lines] for axis in figure.axes}
    assert drawn["loss"] == [[1, 2, 3, 4]] and drawn["effective rank"] == [[2, 3]]
    assert drawn["probe Dice"] == [[2, 4], [2, 4]]
    assert [f.name for f in tmp_path.iterdir()] == ["progress.png"]
    draw_progress(rows[:1], tmp_path / "progress.png", "run")
    assert "probe Dice" not in {axis.get_ylabel() for axis in figures[1].axes}
    axis = figures[1].axes[0]
    low, high = axis.get_xlim()
    assert [tick for tick in axis.get_xticks() if low <= tick <= high] == [1]  # one epoch: one tick, and a marker on it
    assert axis.lines[0].get_marker() == "o"


def test_draw_panels__is_900_pixels_wide_and_numbers_stay_inside(tmp_path: Path) -> None:
    corners = [(1, 0.0, 0.0), (2, 0.0, 19.0), (3, 19.0, 19.0), (4, 19.0, 0.0)]
    panel = Panel(np.zeros((20, 20), np.float32), "crop", corners, boxes=[(1, 1, 5, 5)], texts=[("R", 2, 2)])
    where = Panel(np.zeros((9, 7), np.float32), "case", frames=[(0, 0, 3, 3)], aspect=2.0)
    for columns in (1, 2, 6):
        draw_panels([[panel] * columns] * 2, tmp_path / "a.png", "title\ncase", [where])
        assert Image.open(tmp_path / "a.png").size[0] == 900


@pytest.mark.parametrize(("place", "expected"), [((0.0, 19.0), (-1, -1)), ((19.0, 0.0), (1, 1))])
def test_draw_point__number_is_towards_the_middle(place: tuple[float, float], expected: tuple[int, int]) -> None:
    axis = new_figure(2, 2).subplots()
    pictures._draw_point(axis, 1, *place, (20, 20))
    (text,) = axis.texts
    assert isinstance(text, Annotation)
    assert tuple(np.sign(text.xyann)) == expected
