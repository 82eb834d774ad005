"""Crops by a scale (methods.md 5.1); noise, gamma and brightness in the units of an intensity window (3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nnssl.methods.base import MethodConfig, ascending, between, formerly_fixed


@torch.no_grad()
def scaled_crops(regions: Tensor, scales: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Sample patches from regions that begin one voxel before their crops (methods.md 5.1).

    Voxel i of a patch lies at 1 + (i + 0.5) * scale - 0.5 of its region: scales need no box of whole voxels, and what
    lies around the crop is looked at.

    Args:
        regions: (N, C, Z, Y, X) floating, as large as `nnssl.methods.shared.overlapping_crops.region_size` or larger.
        scales: (N,) voxels of the region for one of the patch.
        patch: (Z, Y, X) size of the results.

    Returns:
        (N, C, *patch), of the regions' type.
    """
    axes = []
    for size, length in zip(regions.shape[2:], patch, strict=True):
        steps = torch.arange(length, device=regions.device, dtype=regions.dtype) + 0.5
        voxels = 0.5 + steps * scales.to(regions.dtype)[:, None]
        axes.append((2 * voxels + 1) / size - 1)
    z, y, x = axes
    shape = (len(regions), *patch)
    lines = (x[:, None, None, :], y[:, None, :, None], z[:, :, None, None])
    grid = torch.stack([line.expand(shape) for line in lines], -1)
    return F.grid_sample(regions, grid, mode="bilinear", padding_mode="border", align_corners=False)


WINDOW_KEYS = ("noise_sigma", "noise_seed", "gamma", "brightness")  # the parameters, as `sample_window_intensity` draws

_CT_WINDOW_HU = (-200.0, 400.0)  # PiMPiC's [P] [C]
_OTHER_WINDOW = (-1350.0, 1000.0)  # all of the range of a channel without HU, in the units of `Volume.hu_affine`


@dataclass(frozen=True, kw_only=True)
class WindowIntensityConfig(MethodConfig):
    """Hyper-parameters of noise, gamma and brightness.

    PiMPiC's code has the noise only [C]; its paper says "intensity-based augmentations", and the others are ours.
    """

    noise_probability: float = formerly_fixed(0.9)  # [C]
    noise_sigma_hu: float = formerly_fixed(6.0)  # a hundredth of the window [C]
    gamma_probability: float = formerly_fixed(0.5)
    gamma: tuple[float, float] = formerly_fixed((0.7, 1.5))
    brightness_probability: float = formerly_fixed(0.5)
    brightness_hu: float = formerly_fixed(60.0)  # largest shift, either way

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("noise_sigma_hu", "brightness_hu"):
            between(self, name, 0, 10_000)
        ascending(self, "gamma", 0.01, 100)


def sample_window_intensity(
    rng: np.random.Generator, views: int, config: WindowIntensityConfig, noise_only: bool = False
) -> dict[str, NDArray[Any]]:
    """Draw the parameters of `apply_window_intensity`.

    Args:
        rng: source of the draws.
        views: number of views K.
        config: probabilities and strengths.
        noise_only: one strength of noise for all views together, and no gamma or brightness: the authors' augmentation,
            which is of the volume that the views are then cut from.

    Returns:
        "noise_sigma" (K,) and "brightness" (K,) in window units, 0 where there is none; "gamma" (K,), 1 where there is
        none; "noise_seed" () int64 >= 0, of all views' noise.
    """
    width = _CT_WINDOW_HU[1] - _CT_WINDOW_HU[0]
    sigma, most = config.noise_sigma_hu / width, config.brightness_hu / width
    noisy = rng.random(1 if noise_only else views) < config.noise_probability
    bent = (rng.random(views) < config.gamma_probability) & (not noise_only)
    shifted = (rng.random(views) < config.brightness_probability) & (not noise_only)
    gamma, brightness = rng.uniform(*config.gamma, views), rng.uniform(-most, most, views)
    return {
        "noise_sigma": np.broadcast_to(np.where(noisy, sigma, 0.0), views),
        "noise_seed": np.array(rng.integers(0, 2**63, dtype=np.int64)),
        "gamma": np.where(bent, gamma, 1.0),
        "brightness": np.where(shifted, brightness, 0.0),
    }


@torch.no_grad()
def apply_window_intensity(
    x: Tensor, params: Mapping[str, Tensor], noise: Tensor, hu_affine: Tensor, is_ct: Tensor
) -> Tensor:
    """Augment normalised views as if their window were [0, 1], and return them normalised as before.

    With u = (offset + scale x - low) / width, the window being [-200, 400] HU for CT and the whole range for other
    channels: u becomes u^gamma inside the window and stays what it is outside; brightness and then noise are added.
    With PiMPiC's preset u = x. Values may leave [0, 1] by brightness and noise, as the noise does in the authors' code.

    Args:
        x: (K, C, Z, Y, X) floating. Not changed.
        params: "noise_sigma", "gamma", "brightness" (K,), see `sample_window_intensity`.
        noise: (K, C, Z, Y, X) standard normal, on x's device.
        hu_affine: (C, 2) [offset, scale] with scale > 0, see `Volume.hu_affine`; the same for all views.
        is_ct: (C,) bool.

    Returns:
        (K, C, Z, Y, X) float32.
    """
    offset, scale = hu_affine.double().unbind(-1)
    low, high = (torch.where(is_ct, a, b) for a, b in zip(_CT_WINDOW_HU, _OTHER_WINDOW, strict=True))
    to_window, from_window = scale / (high - low), (high - low) / scale

    def spread(values: Tensor) -> Tensor:
        """(C,) or (K, 1) -> a shape that fits (K, C, Z, Y, X)."""
        return values.to(x.device, torch.float32, non_blocking=True)[..., None, None, None]

    window = torch.addcmul(spread((offset - low) / (high - low)), x.float(), spread(to_window))
    inside = window.clamp(0, 1)
    bent = inside ** spread(params["gamma"][:, None])
    change = bent.sub_(inside).add_(spread(params["brightness"][:, None]))
    change.addcmul_(noise, spread(params["noise_sigma"][:, None]))
    return torch.addcmul(x.float(), change, spread(from_window))


def unit_noise(seed: int, shape: torch.Size | tuple[int, ...], device: torch.device) -> Tensor:
    """Standard normal float32 noise of a seed; CPU and GPU give different numbers."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device)
