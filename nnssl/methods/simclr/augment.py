"""What SimCLR draws: crops, their flips and their intensities; two views of every crop."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nnssl.core.geometry import Integers, random_crop_start
from nnssl.methods.base import Batch, Volume
from nnssl.methods.shared.augment import WINDOW_KEYS, apply_window_intensity, unit_noise
from nnssl.methods.shared.overlapping_crops import sample_pair

_DRAWS = 1024  # of the second crop; every thirtieth overlaps the first by half


def overlapping_starts(
    rng: np.random.Generator, volume: Volume, patch: tuple[int, int, int], least_overlap: float
) -> Integers:
    """First voxels (1, 2, 3) of two crops, of which the first holds a voxel of the body."""
    anchor = volume.random_body_voxel(rng)
    return sample_pair(rng, anchor, volume.size, patch, 0.0, least_overlap, _DRAWS)[0][None]


def random_starts(rng: np.random.Generator, volume: Volume, patch: tuple[int, int, int], crops: int) -> Integers:
    """First voxels (K, 1, 3) of crops, each of which holds a voxel of the body."""
    starts = [random_crop_start(rng, volume.random_body_voxel(rng), patch, volume.size) for _ in range(crops)]
    return np.stack(starts)[:, None]


@torch.no_grad()
def two_views(batch: Batch, i: int) -> Tensor:
    """The views (K, 2, C, *P) of volume i: flipped, with noise, gamma and brightness, each for itself.

    Crops (K, 1, C, *P) are taken twice.
    """
    crops, flips = batch["crops"][i], batch["flips"][i]
    views = crops.expand(-1, 2, *crops.shape[2:]).flatten(0, 1)
    for axis in range(3):
        views = torch.where(flips[:, axis, None, None, None, None], views.flip(axis + 2), views)
    noise = unit_noise(int(batch["noise_seed"][i]), views.shape, views.device)
    parameters = {key: batch[key][i] for key in WINDOW_KEYS}
    changed = apply_window_intensity(views, parameters, noise, batch["hu_affine"][i], batch["is_ct"][i])
    return changed.unflatten(0, (-1, 2))
