from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from torch import Tensor

from nnssl.methods.vox2vec.augment import (
    BLUR,
    NO_FILTER,
    SHARPEN,
    IntensityConfig,
    apply_intensity,
    gaussian_in_plane,
    gaussian_matrices,
    sample_intensity,
)
from tests.networks.helpers import load_reference

REFERENCE = load_reference("vox2vec.json")["intensity"]
DEFAULTS = IntensityConfig()
PAPER = (-1350.0, 2350.0)  # offset and scale of the preset


def params(views: int = 1, **changed: Any) -> dict[str, Tensor]:
    """All off and the fixed window, but for what is given."""
    off: dict[str, Any] = {
        "filter": NO_FILTER,
        "sigma": 0.0,
        "alpha": 0.0,
        "noise_sigma": 0.0,
        "noise_seed": 1,
        "window_low": -1350.0,
        "window_high": 1000.0,
        "window_random": False,
    }
    return {name: torch.as_tensor(value).expand(views).clone() for name, value in (off | changed).items()}


def apply(x: Tensor, p: dict[str, Tensor], affine: tuple[float, float] = PAPER, clip: bool = True) -> Tensor:
    shape = x.shape[:2]
    return apply_intensity(x, p, torch.tensor(affine).expand(*shape, 2), torch.full(shape, clip))


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_sample_intensity__ranges_and_probabilities() -> None:
    n = 20000
    p = sample_intensity(np.random.default_rng(0), n, DEFAULTS)
    blur, sharpen, plain = (p["filter"] == choice for choice in (BLUR, SHARPEN, NO_FILTER))
    noisy, window = p["noise_sigma"] > 0, p["window_random"]
    shares = [blur.mean(), sharpen.mean(), noisy.mean(), window.mean()]
    np.testing.assert_allclose(shares, [0.25, 0.25, 0.5, 0.8], atol=0.015)
    for values, low, high in [
        (p["sigma"][blur], 0.25, 1.5),
        (p["sigma"][sharpen], 0.5, 1.0),
        (p["alpha"][sharpen], 10, 30),
        (p["noise_sigma"][noisy], 0, 30),
        (p["window_low"][window], -1350, -1000),
        (p["window_high"][window], 300, 1000),
    ]:
        span = high - low
        assert low <= values.min() < low + 0.01 * span and high - 0.01 * span < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 0.02 * span
    assert not p["sigma"][plain].any() and not p["alpha"][~sharpen].any()
    assert set(p["window_low"][~window]) == {-1350} and set(p["window_high"][~window]) == {1000}
    assert len(set(p["noise_seed"])) == n and p["noise_seed"].dtype == np.int64 and p["noise_seed"].min() >= 0
    assert abs(np.corrcoef(noisy, window)[0, 1]) < 0.03 and abs(np.corrcoef(noisy, plain)[0, 1]) < 0.03


def test_sample_intensity__same_seed_same_draws() -> None:
    one, two, other = (sample_intensity(np.random.default_rng(seed), 3, DEFAULTS) for seed in (4, 4, 5))
    assert all(np.array_equal(one[name], two[name]) and one[name].shape == (3,) for name in one)
    assert any(not np.array_equal(one[name], other[name]) for name in one)


def test_sample_intensity__follows_its_options_and_draws_the_same_numbers() -> None:
    config = IntensityConfig(blur_sigma_voxels=(2.0, 2.0), sharpen_sigma_voxels=(3.0, 3.0), sharpen_strength=(5.0, 5.0),
                             noise_sigma_hu=(0.0, 10.0), window_low_hu=(-90.0, -80.0), window_high_hu=(10.0, 20.0),
                             random_window_probability=1.0)  # fmt: skip
    usual, drawn = (sample_intensity(np.random.default_rng(0), 500, c) for c in (DEFAULTS, config))
    blur, sharpen = (drawn["filter"] == choice for choice in (BLUR, SHARPEN))
    assert set(drawn["sigma"][blur]) == {2} and set(drawn["sigma"][sharpen]) == {3}
    assert set(drawn["alpha"][sharpen]) == {5} and drawn["window_random"].all()
    assert drawn["window_low"].min() >= -90 and drawn["window_high"].max() <= 20
    np.testing.assert_allclose(drawn["noise_sigma"], usual["noise_sigma"] / 3)
    for name in ("filter", "noise_seed"):
        assert np.array_equal(drawn[name], usual[name])
    off = IntensityConfig(filter_probability=0.0, noise_probability=0.0, random_window_probability=0.0)
    still = sample_intensity(np.random.default_rng(0), 50, off)
    assert not any(still[name].any() for name in ("filter", "sigma", "alpha", "noise_sigma", "window_random"))
    blurred = sample_intensity(np.random.default_rng(0), 50, IntensityConfig(filter_probability=1, blur_probability=1))
    assert (blurred["filter"] == BLUR).all()


@pytest.mark.parametrize("size", [1, 3, 9, 40])  # shorter than the kernel and longer
def test_gaussian_matrices__equal_scipy(size: int) -> None:
    sigmas = [0.25, 0.3, 0.5, 0.77, 1.0, 1.4999]
    line = image(size).double().numpy()
    matrices = gaussian_matrices(torch.tensor(sigmas), size, radius=6)
    for sigma, matrix in zip(sigmas, matrices, strict=True):
        np.testing.assert_allclose(matrix.double() @ line, gaussian_filter1d(line, sigma), atol=1e-6)


def test_gaussian_in_plane__equals_scipy() -> None:
    x = image(2, 2, 3, 9, 14)
    got = gaussian_in_plane(x, torch.tensor([0.4, 1.5]))
    for view, sigma in enumerate([0.4, 1.5]):
        np.testing.assert_allclose(got[view], gaussian_filter(x[view].numpy(), (0, 0, sigma, sigma)), atol=1e-5)


def test_apply_intensity__reference_sharpening() -> None:
    reference = REFERENCE["sharpen"]
    x = torch.zeros(1, 1, 1, 9, 9)
    x[..., 4, 4] = 1
    y = apply(x, params(filter=SHARPEN, sigma=reference["sigma_1"], alpha=reference["alpha"]), (0.0, 1.0), clip=False)[
        0, 0, 0
    ]
    assert y[4, 4].item() == pytest.approx(reference["center"], rel=1e-5)
    for neighbour in (y[4, 3], y[3, 4], y[5, 4], y[4, 5]):
        assert neighbour.item() == pytest.approx(reference["neighbour"], rel=1e-5)
    for diagonal in (y[3, 3], y[5, 3]):
        assert diagonal.item() == pytest.approx(reference["diagonal"], rel=1e-5)


def test_apply_intensity__reference_window() -> None:
    reference = REFERENCE["scale_hu"]
    low, high = reference["window"]
    hu = torch.tensor(reference["x"]).view(1, 1, 1, 1, -1)
    y = apply((hu - PAPER[0]) / PAPER[1], params(window_low=low, window_high=high))
    torch.testing.assert_close(y.flatten(), torch.tensor(reference["y"]), atol=1e-6, rtol=0)


def test_apply_intensity__random_window_in_hu() -> None:
    offset, scale = 70.0, 130.0  # statistics of some CT data set
    hu = torch.tensor([-1500.0, -1100, -400, 0, 250, 500, 2000])
    y = apply(
        ((hu - offset) / scale).view(1, 1, 1, 1, -1),
        params(window_low=-1100.0, window_high=500.0, window_random=True),
        (offset, scale),
        clip=False,
    )
    expected = -1350 + 2350 * ((hu + 1100) / 1600).clip(0, 1)
    torch.testing.assert_close(y.flatten() * scale + offset, expected, atol=0.01, rtol=0)


@pytest.mark.parametrize("affine", [PAPER, (70.0, 130.0), (-175.0, 1175.0)])
def test_apply_intensity__identity_when_all_is_off(affine: tuple[float, float]) -> None:
    x = 8 * image(2, 1, 3, 5, 6) - 4
    assert torch.equal(apply(x, params(2), affine, clip=False), x)
    clipped = apply(x, params(2), affine, clip=True)
    limits = [(hu - affine[0]) / affine[1] for hu in (-1350, 1000)]
    torch.testing.assert_close(clipped, x.clamp(*limits))


def test_apply_intensity__noise() -> None:
    x = torch.full((1, 2, 8, 32, 32), 0.5)
    difference = apply(x, params(noise_sigma=20.0), clip=False) - x
    hu = difference * PAPER[1]
    assert hu.std().item() == pytest.approx(20, rel=0.03) and abs(hu.mean().item()) < 0.5
    assert torch.corrcoef(hu.view(2, -1))[0, 1].abs() < 0.05  # channels have fields of their own
    assert not torch.equal(apply(x, params(noise_sigma=20.0, noise_seed=2), clip=False) - x, difference)


def test_apply_intensity__filters_are_in_plane() -> None:
    x = torch.zeros(1, 1, 5, 7, 7)
    x[0, 0, 2, 3, 3] = 1
    y = apply(x, params(filter=BLUR, sigma=1.0), (0.0, 1.0), clip=False)
    np.testing.assert_allclose(y[0, 0, 2], gaussian_filter(x[0, 0, 2].numpy(), 1.0), atol=1e-6)
    assert not y[0, 0, [0, 1, 3, 4]].any()


def test_apply_intensity__batched_equals_one_by_one() -> None:
    views = 12
    drawn = {
        name: torch.from_numpy(values)
        for name, values in sample_intensity(np.random.default_rng(3), views, DEFAULTS).items()
    }
    assert set(drawn["filter"].tolist()) == {NO_FILTER, BLUR, SHARPEN}
    x = image(views, 2, 3, 10, 12)
    before = x.clone()
    together = apply(x, drawn)
    assert torch.equal(x, before)  # the input is left as it is
    assert together.shape == x.shape and together.min() >= 0 and together.max() <= 1
    assert torch.equal(together, apply(x, drawn))
    for view in range(views):
        alone = apply(x[view : view + 1], {name: values[view : view + 1] for name, values in drawn.items()})
        torch.testing.assert_close(together[view : view + 1], alone, atol=2e-6, rtol=0)


def test_apply_intensity__each_channel_has_its_own_scale() -> None:
    hu = 1500 * image(1, 1, 2, 6, 6) - 1000
    affines = torch.tensor([[[-1350.0, 2350.0], [70.0, 130.0], [-175.0, 400.0]]])
    x = (hu - affines[..., :1, None, None]) / affines[..., 1:, None, None]
    p = params(filter=SHARPEN, sigma=0.8, alpha=12.0, window_low=-1200.0, window_high=700.0, window_random=True)
    y = apply_intensity(x, p, affines, torch.tensor([[True, False, False]]))
    back = y * affines[..., 1:, None, None] + affines[..., :1, None, None]
    torch.testing.assert_close(back[:, 1:], back[:, :1].expand(-1, 2, -1, -1, -1), atol=0.1, rtol=0)


def test_apply_intensity__float32_under_autocast() -> None:
    x = image(1, 1, 2, 9, 9)
    p = params(filter=BLUR, sigma=1.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(apply(x, p), apply(x, p).float())
        got = apply(x, p)
    assert got.dtype == torch.float32 and torch.equal(got, apply(x, p))


def test_apply_intensity__bad_shapes() -> None:
    x = image(2, 1, 2, 3, 3)
    with pytest.raises(ValueError, match="B, C, Z, Y, X"):
        apply(x[0], params(2))
    with pytest.raises(ValueError, match="filter"):
        apply(x, params(3))
    with pytest.raises(ValueError, match="hu_affine"):
        apply_intensity(x, params(2), torch.zeros(2, 2), torch.zeros(2, 1, dtype=torch.bool))
