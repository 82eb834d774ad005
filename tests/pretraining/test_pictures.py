from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nnssl.pretraining import pictures
from nnssl.pretraining.pictures import draw_progress


def _row(epoch: int, **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "loss": 1.0 / epoch, "embedding_std": 0.1, "embedding_dim": 16, "learning_rate": 1e-3,
            "samples_per_second": 2.0, "data_wait": 0.1, **more}  # fmt: skip


def test_draw_progress__shows_what_the_rows_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first row is of an earlier version, the probe is due every other epoch, and there is no validation."""
    figures: list[Any] = []
    save = pictures.save_figure

    def kept(figure: Any, file: Path) -> None:
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
