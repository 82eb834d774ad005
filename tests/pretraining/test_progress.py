from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nnssl.pretraining import progress
from nnssl.pretraining.progress import draw_progress
from tests.pretraining.figures import kept_figures


def _row(epoch: int, **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "loss": 1.0 / epoch, "embedding_std": 0.1, "embedding_dim": 16, "learning_rate": 1e-3,
            "samples_per_second": 2.0, "data_wait": 0.1, **more}  # fmt: skip


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are saved."""
    return kept_figures(monkeypatch, progress)


def _ticks(axis: Any) -> list[str]:
    """What is written at the ticks of the epochs that are seen."""
    low, high = axis.get_xlim()
    return [label.get_text() for tick, label in zip(axis.get_xticks(), axis.get_xticklabels(), strict=True)
            if low <= tick <= high]  # fmt: skip


def test_draw_progress__shows_what_the_rows_have(tmp_path: Path, figures: list[Any]) -> None:
    """The first row is of an earlier version, the probe is due every other epoch, and there is no validation."""
    probed = {"probe_linear_dice": 0.5, "probe_nonlinear_dice": 0.25, "probe_linear_dice_left kidney/cyst": 0.5}
    rows = [_row(1), _row(2, effective_rank=3.0, **probed), _row(3, effective_rank=4.0), _row(4, **probed)]
    draw_progress(rows, tmp_path / "progress.png", "run")
    (figure,) = figures
    drawn = {axis.get_ylabel(): [list(line.get_xdata()) for line in axis.lines] for axis in figure.axes}
    assert drawn["loss"] == [[1, 2, 3, 4]] and drawn["effective rank (dimensions)"] == [[2, 3]]
    assert drawn["probe Dice"] == [[2, 4], [2, 4]] and drawn["learning rate ($10^{-3}$)"] == [[1, 2, 3, 4]]
    assert all(axis.lines for axis in figure.axes)
    dice = next(axis for axis in figure.axes if axis.get_ylabel() == "probe Dice")
    looks = [(line.get_linestyle(), line.get_marker()) for line in dice.lines]
    assert looks[0][0] != looks[1][0] and looks[0][1] != looks[1][1]
    assert [f.name for f in tmp_path.iterdir()] == ["progress.png"]


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(1, ["0", "1"]), (2, ["1", "2"]), (1500, ["1", "250", "500", "750", "1,000", "1,250", "1,500"])],
)
def test_draw_progress__ticks_are_whole_epochs(
    epochs: int, expected: list[str], tmp_path: Path, figures: list[Any]
) -> None:
    draw_progress([_row(n + 1) for n in range(epochs)], tmp_path / "progress.png", "run")
    axis = figures[0].axes[0]
    assert _ticks(axis) == expected and "probe Dice" not in {a.get_ylabel() for a in figures[0].axes}
    assert axis.lines[0].get_marker() == ("o" if epochs < 60 else "")
    assert axis.get_yscale() == ("log" if epochs == 1500 else "linear")  # the loss falls from 1 to 1/1500
    low, high = axis.get_ylim()
    assert sum(low <= tick <= high for tick in axis.get_yticks()) >= 2
