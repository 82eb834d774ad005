"""vox2vec's intensity augmentation: blur or sharpen, noise, window (methods.md 1.1a, from the authors' code)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nnssl.core.errors import UserError
from nnssl.core.sending import send
from nnssl.methods.base import MethodConfig, ascending, between, formerly_fixed

_SIGMA_VOXELS = (0.01, 100.0)  # range; the kernel's length grows with it
_TRUNCATE = 4.0  # scipy.ndimage.gaussian_filter's default: the kernel ends at int(4 sigma + 0.5) voxels


def gaussian_in_plane(x: Tensor, sigma: Tensor) -> Tensor:
    """Filter the last two axes of each view, equal to scipy.ndimage.gaussian_filter(mode="reflect", truncate=4).

    Args:
        x: (K, C, Z, Y, X) float32.
        sigma: (K,) standard deviation in voxels, > 0; on the CPU, so that a GPU need not wait. With (1,) one for all.

    Returns:
        (K, C, Z, Y, X), a new tensor.
    """
    return _filtered(x, *send(_matrices(sigma, x.shape[3:]), x.device))


def _matrices(sigma: Tensor, plane: Sequence[int]) -> list[Tensor]:
    """The matrices along Y and along X; small enough to be made on the host."""
    radius = int(_TRUNCATE * float(sigma.max()) + 0.5)
    return [gaussian_matrices(sigma, size, radius) for size in plane]


def _filtered(x: Tensor, along_y: Tensor, along_x: Tensor) -> Tensor:
    views, channels, slices, height, width = x.shape
    along_y, along_x = (matrices.expand(views, -1, -1) for matrices in (along_y, along_x))
    rows = torch.bmm(x.reshape(views, -1, width), along_x.transpose(1, 2))
    planes = torch.matmul(along_y[:, None], rows.view(views, channels * slices, height, width))
    return planes.view_as(x)


def gaussian_matrices(sigma: Tensor, size: int, radius: int) -> Tensor:
    """Return the matrices M with M[k] @ line = the line filtered with sigma[k].

    The line is reflected at its ends, with the edge voxel repeated (d c b a | a b c d | d c b a).

    Args:
        sigma: (K,) standard deviations in voxels, > 0.
        size: length of the line.
        radius: half the length of the longest kernel, int(4 max(sigma) + 0.5); other kernels end earlier.

    Returns:
        (K, size, size) float32, rows sum to 1.
    """
    offsets = torch.arange(-radius, radius + 1, device=sigma.device)
    widths = sigma.double()[:, None]
    kernels = torch.exp(-0.5 * (offsets / widths).square())
    kernels = kernels * (offsets.abs() <= (_TRUNCATE * widths + 0.5).floor())
    kernels = (kernels / kernels.sum(1, keepdim=True)).float()
    # The modulus 2 size, the period of a reflected line, makes lines shorter than the kernel right too.
    source = (torch.arange(size, device=sigma.device)[:, None] + offsets) % (2 * size)
    source = torch.where(source < size, source, 2 * size - 1 - source)
    matrices = torch.zeros(len(sigma), size, size, device=sigma.device)
    return matrices.scatter_add_(2, source.expand(len(sigma), -1, -1), kernels[:, None].expand(-1, size, -1))


FIXED_WINDOW_HU = (-1350.0, 1000.0)
NO_FILTER, BLUR, SHARPEN = 0, 1, 2
# the parameters of a view that `sample_intensity` draws
INTENSITY_KEYS = (
    "filter", "sigma", "alpha", "noise_sigma", "noise_seed", "window_low", "window_high", "window_random",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class IntensityConfig(MethodConfig):
    """Hyper-parameters of the augmentation, with the authors' values; draws from ranges are uniform."""

    filter_probability: float = formerly_fixed(0.5)  # of a blur or a sharpening, in the plane
    blur_probability: float = formerly_fixed(0.5)  # of the blur, if there is one of the two
    blur_sigma_voxels: tuple[float, float] = formerly_fixed((0.25, 1.5))
    sharpen_sigma_voxels: tuple[float, float] = formerly_fixed((0.5, 1.0))
    sharpen_detail_sigma_voxels: float = formerly_fixed(0.5)
    sharpen_strength: tuple[float, float] = formerly_fixed((10.0, 30.0))
    noise_probability: float = formerly_fixed(0.5)
    noise_sigma_hu: tuple[float, float] = formerly_fixed((0.0, 30.0))
    random_window_probability: float = formerly_fixed(0.8)  # else [-1350, 1000] HU
    window_low_hu: tuple[float, float] = formerly_fixed((-1350.0, -1000.0))
    window_high_hu: tuple[float, float] = formerly_fixed((300.0, 1000.0))

    def __post_init__(self) -> None:
        super().__post_init__()
        ascending(self, *_SIGMA_VOXELS, "blur_sigma_voxels", "sharpen_sigma_voxels")
        between(self, *_SIGMA_VOXELS, "sharpen_detail_sigma_voxels")
        ascending(self, 0, 1000, "sharpen_strength")
        ascending(self, 0, 10_000, "noise_sigma_hu")
        ascending(self, -10_000, 10_000, "window_low_hu", "window_high_hu")
        if not self.window_low_hu[1] < self.window_high_hu[0]:
            raise UserError(f"window_low_hu must end below {self.window_high_hu[0]}, where window_high_hu begins, not "
                            f"at {self.window_low_hu[1]}")  # fmt: skip


def sample_intensity(rng: np.random.Generator, views: int, config: IntensityConfig) -> dict[str, NDArray[Any]]:
    """Draw the parameters of `apply_intensity`, independently for each view.

    Args:
        rng: source of the draws.
        views: number of views.
        config: probabilities and strengths.

    Returns:
        Arrays of the shape (views,): "filter" (int64: NO_FILTER, BLUR or SHARPEN), "sigma" (of the filter in voxels; 0
        without), "alpha" (strength of the sharpening; 0 without), "noise_sigma" (HU; 0 without), "noise_seed" (int64,
        >= 0), "window_low" and "window_high" (HU), "window_random" (bool; false: the fixed window).
    """
    filtered = rng.random(views) < config.filter_probability
    blurred = rng.random(views) < config.blur_probability
    blur, sharpening = (rng.uniform(*r, views) for r in (config.blur_sigma_voxels, config.sharpen_sigma_voxels))
    sigma = np.where(blurred, blur, sharpening)
    alpha = rng.uniform(*config.sharpen_strength, views)
    noisy = rng.random(views) < config.noise_probability
    noise_sigma = rng.uniform(*config.noise_sigma_hu, views)
    random = rng.random(views) < config.random_window_probability
    low, high = (rng.uniform(*r, views) for r in (config.window_low_hu, config.window_high_hu))
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
def apply_intensity(
    x: Tensor, params: Mapping[str, Tensor], hu_affine: Tensor, clip_fixed: Tensor, detail_sigma: float = 0.5
) -> Tensor:
    """Augment normalised views as if they were in HU, and return them normalised as before.

    With hu = offset + scale x: blur or sharpen in the last two axes, add noise, cut the window u = (hu - low)/(high -
    low), stretch it to the fixed window's range, hu' = -1350 + 2350 u, and go back, x' = (hu' - offset)/scale. u is
    clipped to [0, 1] for a random window always, for the fixed one where `clip_fixed` says so. So with the paper's
    preset (offset -1350, scale 2350) x' = u in [0, 1], as in the paper; with any other plans the fixed window leaves
    the stock values as they are: the numbers that nnU-Net feeds at training time are among those seen in pretraining.

    Args:
        x: (B, C, Z, Y, X) floating. Not changed.
        params: tensors (B,) under the names of `sample_intensity`; with these and the next two on the CPU, a GPU need
            not wait.
        hu_affine: (B, C, 2) [offset, scale], scale > 0: the inverse of the plans' CTNormalization (mean, std), or for
            other channels the map from their range of intensities to [-1350, 1000].
        clip_fixed: (B, C) bool.
        detail_sigma: of the second filter of a sharpening, in voxels.

    Returns:
        (B, C, Z, Y, X) float32 under autocast too. A view's result does not depend on the others in the batch.

    Raises:
        ValueError: shapes do not fit.
    """
    _check(x, params, hu_affine, clip_fixed)
    host = {name: values.cpu() for name, values in params.items()}
    offset, scale = hu_affine.double().cpu().unbind(-1)
    filters = _filters(host["filter"], host["sigma"], host["alpha"], detail_sigma, x.shape[3:])
    amplitude = (host["noise_sigma"].double()[:, None] / scale).float()
    sent = send([*filters, amplitude, *_window(host, offset, scale, clip_fixed.cpu())], x.device)
    filters, (amplitude, *window) = sent[: len(filters)], sent[len(filters) :]
    with torch.autocast(x.device.type, enabled=False):
        # The filters are linear and keep constants, so that all steps can use the normalised values.
        views = x.to(torch.float32, copy=True)
        _filter(views, *filters)
        _add_noise(views, host["noise_sigma"], host["noise_seed"], amplitude)
        gain, shift, lowest, highest = (values[..., None, None, None] for values in window)
        return views.mul_(gain).add_(shift).clamp_(lowest, highest)


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


def _filters(
    choice: Tensor, sigma: Tensor, alpha: Tensor, detail_sigma: float, plane: Sequence[int]
) -> list[Tensor]:  # fmt: skip
    """What `_filter` takes: the numbers of filtered views, of sharpened ones among these, and their parameters."""
    filtered = (choice != NO_FILTER).nonzero().flatten()
    sharpened = (choice[filtered] == SHARPEN).nonzero().flatten()
    if not len(filtered):
        return [filtered]
    blur, strength = _matrices(sigma[filtered], plane), alpha[filtered][sharpened].float()
    return [filtered, *blur, sharpened, strength, *_matrices(torch.full((1,), detail_sigma), plane)]


def _filter(views: Tensor, filtered: Tensor, *parameters: Tensor) -> None:
    """Blur or sharpen the chosen views, in place."""
    if not parameters:
        return
    along_y, along_x, sharpened, strength, *detail = parameters
    smooth = _filtered(views[filtered], along_y, along_x)
    if len(sharpened):
        base = smooth[sharpened]
        # b + alpha (b - G b) amplifies the detail that a second filter removes from the filtered view.
        removed = _filtered(base, *detail)
        smooth[sharpened] = torch.addcmul(base, strength.view(-1, 1, 1, 1, 1), base - removed)
    views[filtered] = smooth


def _add_noise(views: Tensor, sigma: Tensor, seed: Tensor, amplitude: Tensor) -> None:
    """Add Gaussian noise in place, with one field and seed per view; amplitudes (B, C) are those of sigma HU (B,)."""
    generator = torch.Generator(views.device)
    for i, (view, hu, view_seed) in enumerate(zip(views, sigma.tolist(), seed.tolist(), strict=True)):
        if hu > 0:
            noise = torch.randn(view.shape, generator=generator.manual_seed(view_seed), device=view.device)
            view.addcmul_(noise, amplitude[i].view(-1, 1, 1, 1))


def _window(params: Mapping[str, Tensor], offset: Tensor, scale: Tensor, clip_fixed: Tensor) -> list[Tensor]:
    """Cut and stretch, (B, C) each: the map x' = gain x + shift, and a clip to the ends of the fixed window in x."""
    least, most = FIXED_WINDOW_HU
    low, high = params["window_low"].double()[:, None], params["window_high"].double()[:, None]
    gain = (most - least) / (high - low)
    # hu' = gain hu + least - gain low, with hu = offset + scale x; the fixed window has exactly gain 1 and shift 0.
    shift = ((gain - 1) * offset + (least - gain * low)) / scale
    clipped = params["window_random"].bool()[:, None] | clip_fixed
    lowest = torch.where(clipped, (least - offset) / scale, -torch.inf)
    highest = torch.where(clipped, (most - offset) / scale, torch.inf)
    return [values.float().expand(offset.shape) for values in (gain, shift, lowest, highest)]
