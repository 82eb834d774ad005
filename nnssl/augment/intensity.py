"""vox2vec's intensity augmentation: blur or sharpen, noise, window (methods.md 1.1a, from the authors' code)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnssl.augment.gaussian import gaussian_in_plane

FIXED_WINDOW_HU = (-1350.0, 1000.0)
NO_FILTER, BLUR, SHARPEN = 0, 1, 2
# the parameters of a view, as `sample_intensity` draws them
INTENSITY_KEYS = (
    "filter", "sigma", "alpha", "noise_sigma", "noise_seed", "window_low", "window_high", "window_random",
)  # fmt: skip

_FILTER_PROBABILITY = 0.5  # then blur and sharpen are equally likely
_BLUR_SIGMA = (0.25, 1.5)  # voxels
_SHARPEN_SIGMA = (0.5, 1.0)  # voxels
_SHARPEN_DETAIL_SIGMA = 0.5  # voxels
_SHARPEN_ALPHA = (10.0, 30.0)
_NOISE_PROBABILITY = 0.5
_NOISE_SIGMA_HU = (0.0, 30.0)
_RANDOM_WINDOW_PROBABILITY = 0.8
_WINDOW_LOW_HU = (-1350.0, -1000.0)
_WINDOW_HIGH_HU = (300.0, 1000.0)


def sample_intensity(rng: np.random.Generator, views: int) -> dict[str, NDArray[Any]]:
    """Draw the parameters of `apply_intensity`, independently for each view.

    Args:
        rng: source of the draws.
        views: number of views.

    Returns:
        Arrays of the shape (views,): "filter" (int64: NO_FILTER, BLUR or SHARPEN), "sigma" (voxels: the blur's, or
        sigma1 of the sharpening; 0 without filter), "alpha" (strength of the sharpening; 0 without), "noise_sigma" (HU;
        0 without), "noise_seed" (int64, >= 0), "window_low" and "window_high" (HU), "window_random" (bool; false: the
        fixed window).
    """
    filtered = rng.random(views) < _FILTER_PROBABILITY
    blurred = rng.random(views) < 0.5
    sigma = np.where(blurred, rng.uniform(*_BLUR_SIGMA, views), rng.uniform(*_SHARPEN_SIGMA, views))
    alpha = rng.uniform(*_SHARPEN_ALPHA, views)
    noisy = rng.random(views) < _NOISE_PROBABILITY
    noise_sigma = rng.uniform(*_NOISE_SIGMA_HU, views)
    random = rng.random(views) < _RANDOM_WINDOW_PROBABILITY
    low, high = rng.uniform(*_WINDOW_LOW_HU, views), rng.uniform(*_WINDOW_HIGH_HU, views)
    return {
        "filter": np.where(filtered, np.where(blurred, BLUR, SHARPEN), NO_FILTER).astype(np.int64),
        "sigma": np.where(filtered, sigma, 0.0),
        "alpha": np.where(filtered & ~blurred, alpha, 0.0),
        "noise_sigma": np.where(noisy, noise_sigma, 0.0),
        "noise_seed": rng.integers(0, 2**63, views, dtype=np.int64),
        "window_low": np.where(random, low, FIXED_WINDOW_HU[0]),
        "window_high": np.where(random, high, FIXED_WINDOW_HU[1]),
        "window_random": random,
    }


@torch.no_grad()
def apply_intensity(x: Tensor, params: Mapping[str, Tensor], hu_affine: Tensor, clip_fixed: Tensor) -> Tensor:
    """Augment normalised views as if they were in HU, and return them normalised as before.

    With hu = offset + scale x: blur or sharpen in the last two axes, add noise, cut the window u = (hu - low)/(high -
    low), stretch it to the fixed window's range, hu' = -1350 + 2350 u, and go back, x' = (hu' - offset)/scale. u is
    clipped to [0, 1] for a random window always, for the fixed one where `clip_fixed` says so. So with the paper's
    preset (offset -1350, scale 2350) x' = u in [0, 1], as in the paper; with any other plans the fixed window leaves
    the stock values as they are: the numbers that nnU-Net feeds at training time are among those seen in pretraining.

    Args:
        x: (B, C, Z, Y, X) floating. Not changed.
        params: tensors (B,) under the names of `sample_intensity`. On the CPU these and the next two cost a GPU no
            waiting.
        hu_affine: (B, C, 2) [offset, scale], scale > 0: the CTNormalization of the plans undone (mean, std). For a
            channel that is no CT, the affine map that takes its range of intensities to [-1350, 1000].
        clip_fixed: (B, C) bool.

    Returns:
        (B, C, Z, Y, X) float32 whatever the autocast. A view's result does not depend on the others in the batch.

    Raises:
        ValueError: shapes do not fit.
    """
    _check(x, params, hu_affine, clip_fixed)
    offset, scale = hu_affine.double().cpu().unbind(-1)
    host = {name: values.cpu() for name, values in params.items()}
    with torch.autocast(x.device.type, enabled=False):
        # The filters are linear and keep constants, so that all steps can be taken on the normalised values.
        views = x.to(torch.float32, copy=True)
        _filter(views, host["filter"], host["sigma"], host["alpha"])
        _add_noise(views, host["noise_sigma"], host["noise_seed"], scale)
        return _window(views, host, offset, scale, clip_fixed.cpu())


def _check(x: Tensor, params: Mapping[str, Tensor], hu_affine: Tensor, clip_fixed: Tensor) -> None:
    if x.ndim != 5:
        raise ValueError(f"x must have the shape (B, C, Z, Y, X), got {tuple(x.shape)}")
    for name, values in params.items():
        if values.shape != x.shape[:1]:
            raise ValueError(f"{name} must have the shape ({x.shape[0]},), got {tuple(values.shape)}")
    if hu_affine.shape != (*x.shape[:2], 2) or clip_fixed.shape != x.shape[:2]:
        raise ValueError(
            f"hu_affine must have the shape {(*x.shape[:2], 2)} and clip_fixed {tuple(x.shape[:2])}, "
            f"got {tuple(hu_affine.shape)} and {tuple(clip_fixed.shape)}"
        )


def _filter(views: Tensor, choice: Tensor, sigma: Tensor, alpha: Tensor) -> None:
    """Blur or sharpen, in place, those views that are to be."""
    filtered = (choice != NO_FILTER).nonzero().flatten()
    if len(filtered) == 0:
        return
    smooth = gaussian_in_plane(views[filtered.to(views.device)], sigma[filtered])
    sharpened = (choice[filtered] == SHARPEN).nonzero().flatten()
    if len(sharpened):
        at = sharpened.to(views.device)
        base = smooth[at]
        # b + alpha (b - G b): what a second filter takes from the filtered view is what is amplified.
        detail = base - gaussian_in_plane(base, torch.full(at.shape, _SHARPEN_DETAIL_SIGMA))
        strength = alpha[filtered][sharpened].to(views.device, torch.float32)
        smooth[at] = torch.addcmul(base, strength.view(-1, 1, 1, 1, 1), detail)
    views[filtered.to(views.device)] = smooth


def _add_noise(views: Tensor, sigma: Tensor, seed: Tensor, scale: Tensor) -> None:
    """Add sigma HU of Gaussian noise in place, each view's own field from its own seed."""
    generator = torch.Generator(views.device)
    for view, hu, view_seed, view_scale in zip(views, sigma.tolist(), seed.tolist(), scale, strict=True):
        if hu > 0:
            noise = torch.randn(view.shape, generator=generator.manual_seed(view_seed), device=view.device)
            view.addcmul_(noise, (hu / view_scale).to(view.device, torch.float32).view(-1, 1, 1, 1))


def _window(views: Tensor, params: Mapping[str, Tensor], offset: Tensor, scale: Tensor, clip_fixed: Tensor) -> Tensor:
    """Cut and stretch in place: one affine map x' = gain x + shift and one clip to where the fixed window ends in x."""
    least, most = FIXED_WINDOW_HU
    low, high = params["window_low"].double()[:, None], params["window_high"].double()[:, None]
    gain = (most - least) / (high - low)
    # hu' = gain hu + least - gain low, with hu = offset + scale x; for the fixed window exactly gain 1 and shift 0.
    shift = ((gain - 1) * offset + (least - gain * low)) / scale
    clipped = params["window_random"].bool()[:, None] | clip_fixed
    lowest = torch.where(clipped, (least - offset) / scale, -torch.inf)
    highest = torch.where(clipped, (most - offset) / scale, torch.inf)

    def per_channel(values: Tensor) -> Tensor:
        return values.to(views.device, torch.float32).expand(views.shape[:2])[..., None, None, None]

    views.mul_(per_channel(gain)).add_(per_channel(shift))
    return views.clamp_(per_channel(lowest), per_channel(highest))
