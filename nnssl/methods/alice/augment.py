"""Alice's target views: rotated, resized, flipped, scaled and shifted in intensity (methods.md 4.1), batched.

The paper gives the steps without numbers; ours are common ones.
"""

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

from nnssl.methods.base import below_one, between, formerly_fixed, share
from nnssl.methods.shared.masked_method import MaskedConfig

TARGET_KEYS = ("angles", "scales", "shifts", "flips", "gains", "offsets")

_WINDOW_CT = (-125.0, 350.0)  # least value and width in HU of the authors' window
_RANGE_OTHERS = (-1350.0, 2350.0)  # the same for other images, in the units of `Volume.hu_affine`


@dataclass(frozen=True, kw_only=True)
class TargetViewConfig(MaskedConfig):
    """Hyper-parameters of the target views."""

    rotation_degrees: float = formerly_fixed(15.0)  # largest, in the plane, as in the authors' code
    least_scale: float = formerly_fixed(0.75)  # smallest side of the part that is resized to the whole crop
    flip_probability: float = formerly_fixed(0.5)  # of each axis
    gain: float = formerly_fixed(0.1)  # largest difference from 1
    shift_hu: float = formerly_fixed(35.0)  # largest: a tenth of the window

    def __post_init__(self) -> None:
        super().__post_init__()
        between(self, 0, 180, "rotation_degrees")
        between(self, 0, 10_000, "shift_hu")
        below_one(self, "gain")
        share(self, "least_scale")


def sample_target_views(
    rng: np.random.Generator, hu_affine: NDArray[Any], is_ct: NDArray[Any], config: TargetViewConfig
) -> dict[str, Any]:
    """Draw the parameters of `target_views`, independently for each view; one draw for all channels.

    Args:
        rng: source of the draws.
        hu_affine: (K, C, 2) offset and scale of each view's channels, see `nnssl.methods.base.Volume`.
        is_ct: (K, C) bool.
        config: the limits of the draws.

    Returns:
        "angles" (K,) in radians, "scales" (K,), "shifts" (K, 3) of the centre in units of half the size, "flips" (K, 3)
        bool, and "gains" and "offsets" (K, C), for gain * value + offset; float32.
    """
    views = len(hu_affine)
    scales = rng.uniform(config.least_scale, 1, views)
    room = (1 - scales)[:, None]
    angle, most = radians(config.rotation_degrees), config.shift_hu / _WINDOW_CT[1]
    gain, shift = rng.uniform(1 - config.gain, 1 + config.gain, (views, 1)), rng.uniform(-most, most, (views, 1))
    least, width = (np.where(is_ct, ct, other) for ct, other in zip(_WINDOW_CT, _RANGE_OTHERS, strict=True))
    offset, scale = hu_affine[..., 0], hu_affine[..., 1]
    drawn = {
        "angles": rng.uniform(-angle, angle, views),
        "scales": scales,
        "shifts": rng.uniform(-room, room, (views, 3)),
        "gains": np.broadcast_to(gain, is_ct.shape),
        # hu' = least + gain (hu - least) + shift width, with hu = offset + scale value
        "offsets": ((gain - 1) * (offset - least) + shift * width) / scale,
    }
    return {
        "flips": rng.random((views, 3)) < config.flip_probability,
        **{k: v.astype(np.float32) for k, v in drawn.items()},
    }


@torch.no_grad()
def target_views(crops: Tensor, spacing: Tensor, params: Mapping[str, Tensor]) -> Tensor:
    """Augment crops, with 0 outside of them, as outside of the volume.

    Args:
        crops: (K, C, Z, Y, X) floating, normalised.
        spacing: (K, 3) millimetres per voxel, so that rotations keep angles if voxels are not square.
        params: tensors under `TARGET_KEYS`, see `sample_target_views`.

    Returns:
        (K, C, Z, Y, X), of the crops' type.
    """
    signs = 1 - 2 * params["flips"].to(crops.dtype)
    scales = params["scales"].to(crops.dtype)
    cos, sin = (f(params["angles"].to(crops.dtype)) * scales for f in (torch.cos, torch.sin))
    height, width = (spacing[:, axis].to(crops) * crops.shape[axis + 2] for axis in (1, 2))
    matrix = crops.new_zeros(len(crops), 3, 4)  # rows and columns x, y, z of affine_grid, from -1 to 1
    matrix[:, 0, 0], matrix[:, 0, 1] = cos * signs[:, 2], sin * signs[:, 1] * height / width
    matrix[:, 1, 0], matrix[:, 1, 1] = -sin * signs[:, 2] * width / height, cos * signs[:, 1]
    matrix[:, 2, 2] = scales * signs[:, 0]
    matrix[:, :, 3] = params["shifts"].to(crops.dtype).flip(1)
    grid = F.affine_grid(matrix, list(crops.shape), align_corners=False)
    gains, offsets = (params[name].to(crops.dtype)[..., None, None, None] for name in ("gains", "offsets"))
    brighter = torch.addcmul(offsets, crops, gains)
    return F.grid_sample(brighter, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
