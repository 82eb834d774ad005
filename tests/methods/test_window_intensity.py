from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nnssl.methods.options import from_plain
from nnssl.methods.shared.augment import (
    WindowIntensityConfig,
    apply_window_intensity,
    sample_window_intensity,
    unit_noise,
)

DEFAULTS = WindowIntensityConfig()
PRESET = torch.tensor([[-200.0, 600.0]])
CT, OTHER = torch.tensor([True]), torch.tensor([False])


def params(**changed: Any) -> dict[str, Tensor]:
    off: dict[str, Any] = {"noise_sigma": 0.0, "gamma": 1.0, "brightness": 0.0}
    return {name: torch.as_tensor(value, dtype=torch.float64).expand(2) for name, value in (off | changed).items()}


def image() -> Tensor:
    return torch.linspace(-0.5, 1.5, 2 * 4 * 5 * 6).view(2, 1, 4, 5, 6)


def apply(x: Tensor, p: dict[str, Tensor], affine: Tensor = PRESET, is_ct: Tensor = CT) -> Tensor:
    return apply_window_intensity(x, p, unit_noise(3, x.shape, x.device), affine, is_ct)


def test_apply__nothing_switched_on_changes_nothing() -> None:
    torch.testing.assert_close(apply(image(), params()), image(), rtol=0, atol=1e-6)


def test_apply__gamma_acts_inside_the_window_only() -> None:
    x = image()
    bent = apply(x, params(gamma=[0.5, 2.0]))
    inside = (x >= 0) & (x <= 1)
    expected = torch.where(inside, x.clamp(0, 1) ** torch.tensor([0.5, 2.0]).view(2, 1, 1, 1, 1), x)
    torch.testing.assert_close(bent, expected, rtol=1e-5, atol=1e-6)
    for one in bent:
        assert (one.flatten().diff() > 0).all(), "the order of intensities changed"


def test_apply__brightness_and_noise_are_of_each_view() -> None:
    x = image()
    changed = apply(x, params(brightness=[0.1, -0.05], noise_sigma=[0.0, 0.01])) - x
    torch.testing.assert_close(changed[0], torch.full_like(x[0], 0.1), rtol=1e-4, atol=1e-6)
    assert changed[1].mean().item() == pytest.approx(-0.05, abs=0.005)
    assert changed[1].std().item() == pytest.approx(0.01, rel=0.3)


@pytest.mark.parametrize(("offset", "scale", "is_ct", "low", "width"), [
    (40.0, 150.0, CT, -200.0, 600.0), (-1350.0, 2.5, OTHER, -1350.0, 2350.0),
])  # fmt: skip
def test_apply__plans_of_any_normalisation_see_the_same_window(
    offset: float, scale: float, is_ct: Tensor, low: float, width: float
) -> None:
    """Values normalised otherwise come out as the preset's would, normalised otherwise."""
    p = params(gamma=[0.7, 1.4], brightness=[-0.1, 0.1], noise_sigma=[0.01, 0.01])
    otherwise = (low + width * image() - offset) / scale
    there = (low + width * apply(image(), p) - offset) / scale
    here = apply(otherwise, p, torch.tensor([[offset, scale]]), is_ct)
    torch.testing.assert_close(here, there, rtol=1e-4, atol=1e-4 * width / scale)


def test_sample__frequencies_and_ranges() -> None:
    drawn = sample_window_intensity(np.random.default_rng(0), 4000, DEFAULTS)
    sigma = drawn["noise_sigma"][drawn["noise_sigma"] > 0]
    assert 0 < sigma.min() < 1e-4 and 0.0099 < sigma.max() <= 0.01  # U(0, 0.01): mean 0.005, deviation 0.01 / sqrt(12)
    assert (sigma.mean(), sigma.std()) == pytest.approx((0.005, 0.01 / 12**0.5), rel=0.03)
    assert (drawn["noise_sigma"] > 0).mean() == pytest.approx(0.9, abs=0.02)
    for name, neutral, low, high in (("gamma", 1.0, 0.7, 1.5), ("brightness", 0.0, -0.1, 0.1)):
        assert (drawn[name] != neutral).mean() == pytest.approx(0.5, abs=0.03)
        assert low <= drawn[name].min() < low + 0.01 and high - 0.01 < drawn[name].max() <= high
    assert drawn["noise_seed"] >= 0 and drawn["noise_seed"].shape == ()


def test_sample__noise_only_is_one_strength_for_all_views() -> None:
    drawn = [sample_window_intensity(np.random.default_rng(seed), 8, DEFAULTS, noise_only=True) for seed in range(50)]
    assert all(len(np.unique(d["noise_sigma"])) == 1 for d in drawn)
    assert len({float(d["noise_sigma"][0]) for d in drawn}) > 30
    assert all((d["gamma"] == 1).all() and (d["brightness"] == 0).all() for d in drawn)


def test_sample__follows_its_options() -> None:
    config = WindowIntensityConfig(noise_probability=1.0, noise_sigma=(0.02, 0.02), gamma_probability=0.0,
                                   brightness_probability=1.0, brightness_hu=6.0)  # fmt: skip
    drawn = sample_window_intensity(np.random.default_rng(0), 400, config)
    assert set(drawn["noise_sigma"]) == {0.02} and set(drawn["gamma"]) == {1.0}
    assert 0.009 < np.abs(drawn["brightness"]).max() <= 0.01
    assert set(sample_window_intensity(np.random.default_rng(0), 9, replace(config, noise_sigma_hu=18.0))["noise_sigma"]
               ) == {0.03}  # fmt: skip


def test_sample__a_run_with_one_deviation_goes_on_with_it() -> None:
    stored = {"noise_sigma_hu": 6.0}
    before = from_plain(WindowIntensityConfig, stored)
    drawn = sample_window_intensity(np.random.default_rng(0), 400, before)
    assert set(drawn["noise_sigma"]) == {0.0, 0.01}
    now = sample_window_intensity(np.random.default_rng(0), 400, DEFAULTS)
    assert all(np.array_equal(drawn[name], now[name]) for name in drawn if name != "noise_sigma")
