"""Dice and normalised surface Dice of two masks."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from nnssl.errors import UserError

Mask = NDArray[np.bool_]
Absent = Literal["flare", "exclude"]  # what two empty masks score: 1, or nothing at all


def dice(reference: Mask, prediction: Mask, absent: Absent = "flare") -> float:
    """2 |A ∩ B| / (|A| + |B|), in [0, 1]; of two empty masks 1, or NaN where these are excluded."""
    total = int(reference.sum()) + int(prediction.sum())
    if total == 0:
        return _of_nothing(absent)
    return 2 * int((reference & prediction).sum()) / total


def surface_dice(
    reference: Mask, prediction: Mask, spacing: Sequence[float], tolerance: float, absent: Absent = "flare"
) -> float:
    """Share of both surfaces that lies within the tolerance of the other one (Nikolov et al., 2018), in [0, 1].

    MONAI computes it, with the surface elements and their areas in mm² of DeepMind's `surface-distance`. A structure
    that is cut by the border of the volume has a surface there.

    Args:
        reference: (Z, Y, X); a single slice is compared as a picture, by the length of its outlines.
        prediction: the same.
        spacing: of these axes in mm.
        tolerance: in mm; a distance of just as much is within.
        absent: what two empty masks score. If only one of them is empty, it is 0.

    Raises:
        UserError: MONAI is not installed.
    """
    either = reference | prediction
    if not either.any():
        return _of_nothing(absent)
    if not (reference.any() and prediction.any()):
        return 0.0
    box = tuple(slice(where.min(), where.max() + 1) for where in np.nonzero(either))
    flat = 0 if reference.shape[0] == 1 else slice(None)
    masks = [np.ascontiguousarray(mask[box][flat]) for mask in (prediction, reference)]
    return _surface_dice(masks, tuple(float(s) for s in spacing)[-masks[0].ndim :], tolerance)


def _surface_dice(masks: list[Mask], spacing: tuple[float, ...], tolerance: float) -> float:
    import torch

    tensors = [torch.from_numpy(mask)[None, None] for mask in masks]
    # float32 distances of 0.7 mm voxels miss 2.1 mm by a rounding error
    limit = tolerance * (1 + 1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = load_monai()(*tensors, [limit], include_background=True, spacing=spacing, use_subvoxels=True)
    return float(value)


def load_monai() -> Any:
    """MONAI's function that computes surface Dice.

    Raises:
        UserError: MONAI is not installed.
    """
    try:
        from monai.metrics import compute_surface_dice
    except ImportError as error:
        raise UserError("surface Dice is computed by MONAI, which is not installed; type: pip install nnssl[evaluate]"
                        ) from error  # fmt: skip
    return compute_surface_dice


def _of_nothing(absent: Absent) -> float:
    return 1.0 if absent == "flare" else math.nan
