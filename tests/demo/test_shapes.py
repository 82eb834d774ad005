from __future__ import annotations

import numpy as np
import pytest

from nnssl.demo.patient import Grid, smooth_noise


@pytest.fixture
def grid() -> Grid:
    z, y, x = np.meshgrid(*[np.arange(-10.0, 11.0, dtype=np.float32)] * 3, indexing="ij")
    return Grid(z, y, x)


def test_ellipsoid__one_on_its_surface(grid: Grid) -> None:
    ellipsoid = grid.ellipsoid((1, 0, 0), (4, 2, np.inf))
    assert ellipsoid[11, 10, 0] == 0  # its axis, however far along x
    assert ellipsoid[15, 10, 5] == pytest.approx(1) and ellipsoid[11, 8, 5] == pytest.approx(1)


def test_tube__distance_to_the_polyline(grid: Grid) -> None:
    tube = grid.tube([(0, 0, -5), (0, 0, 5), (0, 5, 5)])
    assert tube[10, 10, 10] == pytest.approx(0)
    assert tube[13, 10, 8] == pytest.approx(3)  # beside the first part
    assert tube[10, 10, 2] == pytest.approx(3)  # beyond its end
    assert tube[10, 15, 19] == pytest.approx(4)  # the second part


def test_smooth_noise__unit_deviation_and_smooth() -> None:
    noise = smooth_noise(np.random.default_rng(0), (60, 60, 60), (6, 5.5, 4))
    assert noise.shape == (60, 60, 60) and noise.dtype == np.float32
    assert noise.std() == pytest.approx(1, abs=0.1) and abs(noise.mean()) < 0.1
    assert np.abs(np.diff(noise, axis=0)).mean() < 0.25  # white noise: 1.13
