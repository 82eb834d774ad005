"""Shapes as functions of coordinates in mm, and smooth random fields. Arrays are (Z, Y, X)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Field = NDArray[np.float32]
Mask = NDArray[np.bool_]
Point = Sequence[float] | NDArray[np.float64]


@dataclass(frozen=True)
class Grid:
    """Coordinates (mm) of every voxel in the reference patient: x to the left, y to the back, z to the head."""

    z: Field
    y: Field
    x: Field

    def ellipsoid(self, centre: Point, radii: Point) -> Field:
        """Squared distance from `centre` (z, y, x) in units of the radii: below 1 inside; `inf` makes a cylinder."""
        axes = zip((self.z, self.y, self.x), centre, radii, strict=True)
        return np.asarray(sum(((c - m) / r) ** 2 for c, m, r in axes), np.float32)

    def tube(self, points: Sequence[Sequence[float]] | NDArray[np.float64]) -> Field:
        """Distance in mm to the polyline through `points` (z, y, x)."""
        nearest = np.full(self.z.shape, np.inf, np.float32)
        for a, b in zip(np.asarray(points[:-1], float), np.asarray(points[1:], float), strict=True):
            direction = (b - a) / np.sum((b - a) ** 2)
            along = (self.z - a[0]) * direction[0] + (self.y - a[1]) * direction[1] + (self.x - a[2]) * direction[2]
            foot = a[:, None, None, None] + (b - a)[:, None, None, None] * along.clip(0, 1)
            offsets = zip((self.z, self.y, self.x), foot, strict=True)
            nearest = np.minimum(nearest, np.sqrt(sum((c - f) ** 2 for c, f in offsets), dtype=np.float32))
        return nearest


def smooth_noise(rng: np.random.Generator, shape: Sequence[int], cell: Point) -> Field:
    """A random field of mean 0 and about unit deviation that varies over `cell` (z, y, x) voxels."""
    coarse = [int(np.ceil(n / c)) + 3 for n, c in zip(shape, cell, strict=True)]
    knots = rng.standard_normal(coarse).astype(np.float32)
    start = rng.uniform(0, 1, 3)
    axes = [s + np.arange(n) / c + 1 for n, c, s in zip(shape, cell, start, strict=True)]
    # one axis after the other: cubic interpolation is separable
    for axis, positions in enumerate(axes):
        knots = _interpolate(knots, positions, axis)
    return np.ascontiguousarray(knots * 3.0)  # a cubic B-spline of unit knots has a deviation of 0.69 an axis


def _interpolate(values: Field, positions: NDArray[np.float64], axis: int) -> Field:
    """Uniform cubic B-spline of knots along one axis."""
    index = np.floor(positions).astype(int)
    t = (positions - index).astype(np.float32)
    weights = ((1 - t) ** 3 / 6, (3 * t**3 - 6 * t**2 + 4) / 6, (-3 * t**3 + 3 * t**2 + 3 * t + 1) / 6, t**3 / 6)
    shape = [1] * values.ndim
    shape[axis] = -1
    return np.asarray(
        sum(
            w.reshape(shape) * values.take((index + k - 1).clip(0, values.shape[axis] - 1), axis=axis)
            for k, w in enumerate(weights)
        ),
        np.float32,
    )


def blur(image: Field, sigma: float | Sequence[float]) -> Field:
    """Gaussian blur; sigma in voxels."""
    return np.asarray(ndimage.gaussian_filter(image, sigma), np.float32)
