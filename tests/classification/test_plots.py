from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from nnssl.classification.plots import draw_results
from nnssl.classification.results import rate
from nnssl.classification.splits import Fold
from tests.classification.data import target_of


@pytest.mark.parametrize("classes", [["$a$", "a class with a long name, indeed", "c"], []])
def test_draw_results__classes_and_numbers(tmp_path: Path, classes: list[str]) -> None:
    target = target_of([0, 1, 2] * 4, classes)
    rng = np.random.default_rng(0)
    found = {case: rng.dirichlet([1] * 3) if classes else rng.normal(size=1) for case in target.cases}
    rated = [rate("one kind", found, target, [Fold(0, (), target.cases)])]
    draw_results(tmp_path / "results.png", rated, target, "a title, 5 $")
    assert imread(tmp_path / "results.png").shape[1] == 900
