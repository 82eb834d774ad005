from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from nnssl.benchmarking.plots import draw_labels, draw_parameters, spread
from tests.benchmarking.test_statistics import made_up


def test_spread__apart_and_in_order() -> None:
    assert spread([0.5, 0.1], 0.1) == [0.5, 0.1]
    assert spread([0.50, 0.52, 0.9], 0.1) == pytest.approx([0.46, 0.56, 0.9])
    placed = spread([0.3, 0.1, 0.11, 0.12, 0.2], 0.1)
    ordered = [placed[i] for i in (1, 2, 3, 4, 0)]
    assert all(b - a >= 0.1 - 1e-9 for a, b in pairwise(ordered))
    assert spread([], 1.0) == []


@pytest.mark.parametrize("draw", [draw_labels, draw_parameters])
def test_draw__also_what_is_incomplete(tmp_path: Path, draw) -> None:  # type: ignore[no-untyped-def]
    results = made_up(seeds=1)
    results.scores.pop(("good", 10, 0))
    results.parameters["base"] = None
    draw(results, "base", tmp_path / "x.png", "title")
    assert [f.name for f in tmp_path.iterdir()] == ["x.png"] and (tmp_path / "x.png").stat().st_size > 5000
    scores = {("$x_{$", cases, seed): tables for (_, cases, seed), tables in results.scores.items()}
    draw(replace(results, methods=["$x_{$"], scores=scores, parameters={"$x_{$": 5}), "$x_{$", tmp_path / "y.png", "")
