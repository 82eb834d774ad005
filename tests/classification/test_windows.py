from __future__ import annotations

import numpy as np
import pytest
import torch

from nnssl.classification.windows import spread_maps, window_vector, windows
from nnssl.core.errors import BadCase
from tests.features.models import mean_model


def test_windows__lie_inside_of_the_volume_and_smaller_axes_are_centred() -> None:
    model = mean_model()  # patch 16 x 32 x 32, cells of 1 x 2 x 2
    values = np.random.default_rng(0).random((1, 10, 40, 70)).astype(np.float32)
    body = np.ones((10, 40, 70), bool)
    found = list(windows(model, 0, values, body, "cpu"))
    assert {tuple(window.box.start) for window in found} >= {(-3, 0, 0), (-3, 8, 38)}
    for window in found:
        assert window.box.start[0] == -3 and (window.box.stop[1:] <= [40, 70]).all()
        assert window.body.sum() == 10 * 32 * 32
        _, y, x = window.box.start
        expected = values[0, :, y : y + 32, x : x + 32].mean()
        assert float(window.features) == pytest.approx(expected, rel=1e-4)
    vector = window_vector(iter(found))
    assert float(vector) == pytest.approx(np.mean([float(window.features) for window in found]))
    heat = spread_maps(iter(found), torch.ones(1), 0.5, body.shape)
    blocks = values[0].reshape(10, 20, 2, 35, 2).mean((2, 4)).repeat(2, 1).repeat(2, 2)
    assert heat == pytest.approx(blocks + 0.5, abs=1e-5)


def test_windows__without_body(tmp_path: object) -> None:
    with pytest.raises(BadCase):
        next(windows(mean_model(), 0, np.zeros((1, 8, 8, 8), np.float32), np.zeros((8, 8, 8), bool), "cpu"))
