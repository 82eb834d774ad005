from __future__ import annotations

import numpy as np
import pytest

from nnssl.pretraining.probe_heads import DiceCounts, mean_dice


def test_dice_counts__by_label_over_windows_without_ignored_voxels() -> None:
    counts = DiceCounts((0, 2, 5), {"a": (2,), "b": (5,), "both": (2, 5)})
    counts.add(np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2]))
    counts.add(np.array([[1, -1]]), np.array([[0, 1]]))
    dice = counts.dice()
    assert dice["a"] == pytest.approx(2 * 1 / (3 + 1)) and dice["b"] == pytest.approx(2 * 1 / (1 + 2))
    assert dice["both"] == pytest.approx(2 * 3 / (4 + 3))


def test_dice_counts__a_label_that_the_case_has_not_is_nan_even_if_predicted() -> None:
    counts = DiceCounts((0, 1), {"a": (1,)})
    counts.add(np.array([0, 0]), np.array([0, 1]))
    assert np.isnan(counts.dice()["a"])


def test_mean_dice__absent_labels_are_left_out() -> None:
    nan = float("nan")
    assert mean_dice([{"a": 0.5, "b": nan}, {"a": 0.7, "b": nan}]) == {"": 0.6, "a": 0.6}
    assert mean_dice([{"a": nan}, {"a": nan}]) == {}
    # the mean over labels of means over cases
    assert mean_dice([{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": nan}])[""] == pytest.approx(0.25)
