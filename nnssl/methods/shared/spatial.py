"""Rotation, scaling and mirroring of crops, with nnU-Net's probabilities and ranges, batched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import radians
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nnssl.core.sending import send
from nnssl.methods.base import MethodConfig, ascending, between

SPATIAL_KEYS = ("angles", "zooms", "flips")
_ROUNDING = 1e-3  # voxels


@dataclass(frozen=True, kw_only=True)
class SpatialConfig(MethodConfig):
    """Hyper-parameters of the spatial augmentation; the defaults are nnU-Net's for isotropic patches."""

    rotation_probability: float = 0.2
    rotation_degrees: float = 30.0  # largest, about each axis
    scale_probability: float = 0.2
    scale: tuple[float, float] = (0.7, 1.4)  # above 1 shows less of the volume, enlarged
    flip_probability: float = 0.5  # of each axis

    def __post_init__(self) -> None:
        super().__post_init__()
        between(self, 0, 180, "rotation_degrees")
        ascending(self, 0.1, 10, "scale")


def sample_spatial(rng: np.random.Generator, crops: int, config: SpatialConfig) -> dict[str, NDArray[Any]]:
    """Draw the parameters of `apply_spatial`, independently for each of K crops.

    Returns:
        "angles" (K, 3) float32 in radians about z, y, x; "zooms" (K,) float32; "flips" (K, 3) bool.
    """
    most = radians(config.rotation_degrees)
    turned = rng.random((crops, 1)) < config.rotation_probability
    scaled = rng.random(crops) < config.scale_probability
    return {
        "angles": np.where(turned, rng.uniform(-most, most, (crops, 3)), 0.0).astype(np.float32),
        "zooms": np.where(scaled, rng.uniform(*config.scale, crops), 1.0).astype(np.float32),
        "flips": rng.random((crops, 3)) < config.flip_probability,
    }


@torch.no_grad()
def apply_spatial(
    crops: Tensor, spacing: Tensor, params: Mapping[str, Tensor], starts: Tensor, sizes: Tensor
) -> tuple[Tensor, Tensor]:
    """Rotate and scale crops about their centres in millimetres, then mirror them.

    Args:
        crops: (K, C, Z, Y, X) floating.
        spacing: (K, 3) millimetres per voxel.
        params: Under `SPATIAL_KEYS`, see `sample_spatial`.
        starts: (K, 3) first voxels of the crops.
        sizes: (K, 3) voxels of the volumes.

    Returns:
        The crops, 0 beyond their edges, and (K, 1, Z, Y, X) bool: which voxels show a place inside crop and volume.
        A crop that is neither rotated nor scaled keeps its values exactly.
    """
    extent = torch.tensor(crops.shape[2:], dtype=torch.float32)
    turned = (params["angles"] != 0).any(1) | (params["zooms"] != 1)
    half = spacing * extent / 2  # millimetres from the centre to a face
    matrix = _rotations(params["angles"]) / params["zooms"][:, None, None]
    matrix = matrix * half[:, None, :] / half[:, :, None]  # from -1 to 1 on every axis
    first = (-starts).clamp(min=0).float() - _ROUNDING
    last = torch.minimum(sizes - starts, extent.to(sizes)).float() - 1 + _ROUNDING
    matrix, moved, extent, first, last = send([matrix.float(), turned, extent, first, last], crops.device)
    warped, places = crops.float(), _voxels(crops)
    if bool(turned.any()):  # of the host: no wait
        grid = F.affine_grid(F.pad(matrix.flip(1, 2), (0, 1)), list(crops.shape), align_corners=False)
        chosen = moved[:, None, None, None, None]
        sampled = F.grid_sample(warped, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        warped = torch.where(chosen, sampled, warped)
        places = torch.where(chosen, (grid.flip(-1) + 1) / 2 * extent - 0.5, places)
    first, last = (x[:, None, None, None] for x in (first, last))
    inside = ((places >= first) & (places <= last)).all(-1)[:, None]
    return _mirrored(warped, params["flips"]).to(crops.dtype), _mirrored(inside, params["flips"])


def _voxels(crops: Tensor) -> Tensor:
    """Numbers (1, Z, Y, X, 3) of the voxels of a crop along the axes."""
    lines = [torch.arange(n, device=crops.device, dtype=torch.float32) for n in crops.shape[2:]]
    return torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1)[None]


def _rotations(angles: Tensor) -> Tensor:
    """Matrices (K, 3, 3) on (z, y, x) of rotations by (K, 3) radians about z, y and x, one after the other."""
    total = torch.eye(3, dtype=angles.dtype).expand(len(angles), 3, 3)
    for axis, (one, two) in enumerate(((1, 2), (0, 2), (0, 1))):
        turn = torch.eye(3, dtype=angles.dtype).repeat(len(angles), 1, 1)
        cos, sin = angles[:, axis].cos(), angles[:, axis].sin()
        turn[:, one, one], turn[:, two, two] = cos, cos
        turn[:, one, two], turn[:, two, one] = -sin, sin
        total = total @ turn
    return total


def _mirrored(x: Tensor, flips: Tensor) -> Tensor:
    """Volumes (K, C, Z, Y, X), each flipped along the axes that (K, 3) names."""
    return torch.stack(
        [
            volume.flip([axis + 1 for axis in range(3) if flip[axis]])
            for volume, flip in zip(x, flips.tolist(), strict=True)
        ]
    )
