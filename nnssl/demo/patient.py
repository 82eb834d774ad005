"""Variation between patients: size, fat, position, contrast phase, and the shape and HU of each organ."""

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
    # axis by axis, because cubic interpolation is separable
    for axis, positions in enumerate(axes):
        knots = _interpolate(knots, positions, axis)
    return np.ascontiguousarray(knots * 3.0)  # a cubic B-spline of unit knots has a deviation of 0.69 per axis


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


# HU of tissues before contrast and in the arterial, portal venous and late phase. As in real scans, the values of
# different organs overlap: no single value identifies an organ.
_PHASES: dict[str, tuple[float, float, float, float]] = {
    "aorta": (42, 300, 165, 120),
    "vein": (42, 110, 165, 122),
    "heart": (44, 220, 150, 118),
    "myocardium": (46, 95, 112, 100),
    "liver": (58, 70, 110, 98),
    "spleen": (50, 108, 120, 104),
    "kidney": (34, 150, 185, 160),
    "medulla": (32, 75, 160, 165),
    "pancreas": (40, 95, 92, 80),
    "gut_wall": (38, 75, 85, 75),
    "muscle": (52, 57, 63, 62),
}
_FIXED: dict[str, float] = {
    "skin": 20, "fat": -102, "lung": -835, "stomach": 25, "bowel": 28, "stool": 5, "gas": -900, "bile": 8, "cord": 32,
    "cortex": 480, "marrow": 190, "rib": 330, "disc": 82, "cartilage": 95,
}  # fmt: skip
ORGANS = (
    "lungs", "heart", "liver", "left_lobe", "spleen", "right_kidney", "left_kidney", "stomach", "spine", "aorta",
    "gallbladder",
)  # fmt: skip
_SHIFT_MM = 6.0  # standard deviation of an organ's place
_SIZE = 0.08  # and of the logarithm of its size


@dataclass(frozen=True)
class Patient:
    """One patient.

    Args:
        scale: size relative to the reference patient along (z, y, x).
        offset: position of the reference patient's origin in the volume, in mm from the middle along (z, y, x).
        fat: thickness of the subcutaneous fat in mm.
        hu: HU of each tissue.
        shift: (z, y, x) in mm of each organ, relative to the reference patient.
        size: factors of each organ's radii along (z, y, x).
        noise: standard deviation of the scanner's noise in HU.
    """

    scale: NDArray[np.float64]
    offset: NDArray[np.float64]
    fat: float
    hu: dict[str, float]
    shift: dict[str, NDArray[np.float64]]
    size: dict[str, NDArray[np.float64]]
    noise: float


def draw_patient(rng: np.random.Generator) -> Patient:
    """Draw a patient; the same state of `rng` gives the same one."""
    phase = int(rng.integers(4))
    hu = {name: values[phase] * rng.normal(1, 0.08) + rng.normal(0, 4) for name, values in _PHASES.items()}
    hu |= {name: value + rng.normal(0, 0.04 * abs(value) + 2) for name, value in _FIXED.items()}
    overall = rng.normal(1.0, 0.05)
    return Patient(
        scale=overall * rng.normal(1.0, 0.03, 3),
        offset=np.array([rng.uniform(-24, 24), rng.normal(0, 6), rng.normal(0, 10)]),
        fat=float(rng.uniform(6, 32)),
        hu={name: float(value) for name, value in hu.items()},
        shift={organ: rng.normal(0, _SHIFT_MM, 3).clip(-2 * _SHIFT_MM, 2 * _SHIFT_MM) for organ in ORGANS},
        size={organ: np.exp(rng.normal(0, _SIZE, 3).clip(-2 * _SIZE, 2 * _SIZE)) for organ in ORGANS},
        noise=float(rng.uniform(9, 20)),
    )
