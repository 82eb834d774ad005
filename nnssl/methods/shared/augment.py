"""Noise, gamma and brightness in the units of an intensity window (methods.md 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnssl.core.sending import send
from nnssl.methods.base import MethodConfig, ascending, between, formerly, formerly_fixed

WINDOW_KEYS = ("noise_sigma", "noise_seed", "gamma", "brightness")  # what `sample_window_intensity` draws

_CT_WINDOW_HU = (-200.0, 400.0)  # PiMPiC's [P] [C]
_OTHER_WINDOW = (-1350.0, 1000.0)  # the whole range of a channel without HU, in the units of `Volume.hu_affine`


@dataclass(frozen=True, kw_only=True)
class WindowIntensityConfig(MethodConfig):
    """Hyper-parameters of noise, gamma and brightness.

    Only the noise is in PiMPiC's code [C]; its paper says "intensity-based augmentations", and the rest is our choice.
    """

    noise_probability: float = formerly_fixed(0.9)  # [C]
    noise_sigma: tuple[float, float] = formerly_fixed((0.0, 0.01))  # uniform between these, in window units [C]
    noise_sigma_hu: float | None = formerly(6.0, None)  # one deviation instead
    gamma_probability: float = formerly_fixed(0.5)
    gamma: tuple[float, float] = formerly_fixed((0.7, 1.5))
    brightness_probability: float = formerly_fixed(0.5)
    brightness_hu: float = formerly_fixed(60.0)  # largest shift, either way

    def __post_init__(self) -> None:
        super().__post_init__()
        between(self, 0, 10_000, "noise_sigma_hu", "brightness_hu")
        ascending(self, 0, 10, "noise_sigma")
        ascending(self, 0.01, 100, "gamma")


def sample_window_intensity(
    rng: np.random.Generator, views: int, config: WindowIntensityConfig, noise_only: bool = False
) -> dict[str, NDArray[Any]]:
    """Draw the parameters of `apply_window_intensity`.

    Args:
        rng: source of the draws.
        views: number of views K.
        config: probabilities and strengths.
        noise_only: one deviation of the noise for all views, and no gamma or brightness: the authors' augmentation,
            which they apply to the volume before they cut the views.

    Returns:
        "noise_sigma" (K,) and "brightness" (K,) in window units, 0 for none; "gamma" (K,), 1 for none; "noise_seed" ()
        int64 >= 0, for the noise of all views.
    """
    width = _CT_WINDOW_HU[1] - _CT_WINDOW_HU[0]
    most, fixed = config.brightness_hu / width, config.noise_sigma_hu
    low, high = config.noise_sigma if fixed is None else (fixed / width, fixed / width)
    noisy = rng.random(1 if noise_only else views) < config.noise_probability
    bent = (rng.random(views) < config.gamma_probability) & (not noise_only)
    shifted = (rng.random(views) < config.brightness_probability) & (not noise_only)
    gamma, brightness = rng.uniform(*config.gamma, views), rng.uniform(-most, most, views)
    seed = np.array(rng.integers(0, 2**63, dtype=np.int64))
    sigma = rng.uniform(low, high, len(noisy))  # last, so that runs of earlier versions draw what they drew
    return {
        "noise_sigma": np.broadcast_to(np.where(noisy, sigma, 0.0), views),
        "noise_seed": seed,
        "gamma": np.where(bent, gamma, 1.0),
        "brightness": np.where(shifted, brightness, 0.0),
    }


@torch.no_grad()
def apply_window_intensity(
    x: Tensor, params: Mapping[str, Tensor], noise: Tensor, hu_affine: Tensor, is_ct: Tensor
) -> Tensor:
    """Augment normalised views as if their window were [0, 1], and return them normalised as before.

    The window is [-200, 400] HU for CT and the whole range for other channels: u = (offset + scale x - low) / width.
    Inside the window u becomes u^gamma; then brightness and noise are added, which may take values out of [0, 1], as
    the noise does in the authors' code. With PiMPiC's preset u = x.

    Args:
        x: (K, C, Z, Y, X) floating. Not changed.
        params: "noise_sigma", "gamma", "brightness" (K,), see `sample_window_intensity`.
        noise: (K, C, Z, Y, X) standard normal, on x's device.
        hu_affine: (C, 2) [offset, scale] with scale > 0, see `Volume.hu_affine`, the same for all views; or (K, C, 2).
        is_ct: (C,) or (K, C) bool.

    Returns:
        (K, C, Z, Y, X) float32.
    """
    offset, scale = hu_affine.double().unbind(-1)
    low, high = (torch.where(is_ct, a, b) for a, b in zip(_CT_WINDOW_HU, _OTHER_WINDOW, strict=True))
    of_channels = ((offset - low) / (high - low), scale / (high - low), (high - low) / scale)
    of_views = (params[name][:, None] for name in ("gamma", "brightness", "noise_sigma"))
    sent = send([values.to(torch.float32) for values in (*of_channels, *of_views)], x.device)
    # (C,), (K, C) or (K, 1) -> a shape that fits (K, C, Z, Y, X)
    begin, to_window, from_window, gamma, brightness, sigma = (values[..., None, None, None] for values in sent)
    window = torch.addcmul(begin, x.float(), to_window)
    inside = window.clamp(0, 1)
    change = (inside**gamma).sub_(inside).add_(brightness).addcmul_(noise, sigma)
    return torch.addcmul(x.float(), change, from_window)


def unit_noise(seed: int, shape: torch.Size | tuple[int, ...], device: torch.device) -> Tensor:
    """Standard normal float32 noise of a seed; CPU and GPU give different numbers."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device)
