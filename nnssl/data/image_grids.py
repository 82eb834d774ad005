"""The grid that nnU-Net's reader will make of a volume: its size against the memory, its place against another's."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnssl.core.memory import gigabytes, memory_limit
from nnssl.data.image_headers import Header, millimetres, unit_columns
from nnssl.errors import BadCase

_SAME_MM, _SAME_DEGREES = 0.01, 0.05  # rounding of headers in single precision


def array_grid(header: Header, reader: Callable[[], Any] | None) -> tuple[list[int], list[float]]:
    """Size and spacing (z, y, x) of the array that nnU-Net's `reader` makes; channels are left out."""
    size, spacing = list(header.size[:3]), [abs(s) for s in header.spacing]
    if _turns(reader) and header.affine is not None and len(size) == 3:
        from nibabel.orientations import io_orientation

        axes = [int(axis) for axis in io_orientation(header.affine)[:, 0]]
        order = [axes.index(world) for world in range(3)]
        size, spacing = [size[axis] for axis in order], [spacing[axis] for axis in order]
    return size[::-1], spacing[::-1]


def refuse_too_large(headers: Sequence[Header]) -> None:
    """Raise BadCase where the volumes of a case, as stored and as the float32 that nnU-Net makes, exceed the memory."""
    needed = sum(math.prod(h.size) * (h.itemsize + 4) for h in headers)
    if needed > memory_limit():
        raise BadCase(f"too large: {'x'.join(map(str, headers[0].size))} voxels take {gigabytes(needed)}, and this "
                      f"machine has {gigabytes(memory_limit())}; mend its header, or use a larger one")  # fmt: skip


def refuse_too_large_at(
    size: Sequence[int],
    spacing: Sequence[float],
    target: Sequence[float | None] | None,
    channels: int,
    image: NDArray[np.float32] | None = None,
) -> None:
    """Raise BadCase where nnU-Net's resampling of a case to the plans' spacing takes more memory than there is.

    nnU-Net holds the image twice, a copy in double precision, the outcome and one channel of it in double precision.

    Args:
        size: voxels (z, y, x), in the plans' order of axes.
        spacing: mm along the same axes.
        target: the plans' spacing; None, with None in it or of two axes where there is nothing to compare.
        channels: of the image.
        image: (C, Z, Y, X) in that order; nnU-Net crops it to what is not zero first, where it is known.
    """
    if target is None or None in target or not len(target) == len(size) == 3:
        return
    shape, needed = _resampled(size, spacing, target, channels)
    if needed > memory_limit() and image is not None:
        size = [int(np.ptp(np.flatnonzero(image.any(tuple({0, 1, 2, 3} - {axis}))))) + 1 for axis in (1, 2, 3)]
        shape, needed = _resampled(size, spacing, target, channels)
    text = (f"{'x'.join(map(str, shape))} voxels at the plans' spacing of {millimetres(target)} mm, from its own of "
            f"{millimetres(spacing)} mm")  # fmt: skip
    if min(shape) < 1:
        raise BadCase(f"too small: {text}; mend the spacing in its header")
    if needed > memory_limit():
        raise BadCase(f"too large: {text}, take {gigabytes(needed)}, and this machine has {gigabytes(memory_limit())}; "
                      f"mend the spacing in its header, or use a larger machine")  # fmt: skip


def grid_difference(first: Header, other: Header, reader: Callable[[], Any] | None) -> str | None:
    """How `other` lies elsewhere than `first`, in mm and degrees; None where both lie on the same voxels.

    nnU-Net's integrity check compares the same things; readers that reorient compare what they make of the files.
    """
    if first.affine is None or other.affine is None:
        return None
    if _turns(reader):
        a, b = _reoriented(first), _reoriented(other)
    else:
        a, b = np.asarray(first.affine), np.asarray(other.affine)
    distance = float(np.linalg.norm(a[:3, 3] - b[:3, 3]))
    cosines = np.sum(unit_columns(a) * unit_columns(b), axis=0)
    degrees = float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).max())
    found = [f"its origin is {distance:.4g} mm away"] if distance > _SAME_MM else []
    found += [f"its direction is turned by {degrees:.3g} degrees"] if degrees > _SAME_DEGREES else []
    return " and ".join(found) or None


def _turns(reader: Callable[[], Any] | None) -> bool:
    return getattr(reader, "__name__", "").endswith("WithReorient")


def _resampled(
    size: Sequence[int], spacing: Sequence[float], target: Sequence[Any], channels: int
) -> tuple[list[int], int]:
    """Voxels after nnU-Net's resampling, and the bytes that it takes."""
    from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

    shape = [int(n) for n in compute_new_shape(list(size), list(spacing), list(target))]
    before, after = math.prod(size), math.prod(shape)
    return shape, 16 * channels * before + (4 * channels + 8) * after


def _reoriented(header: Header) -> NDArray[np.float64]:
    """Affine of the volume that nnU-Net's readers which turn it towards RAS make."""
    from nibabel.orientations import inv_ornt_aff, io_orientation

    affine = np.asarray(header.affine)
    turned: NDArray[np.float64] = affine @ inv_ornt_aff(io_orientation(affine), header.size[:3])
    return turned
