"""What differs between the phantom's patients: size, fat, position, contrast phase, the shape and HU of each organ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# HU of tissues before contrast and in the arterial, portal venous and late phase. Liver and spleen, both kidneys, the
# bowel's wall and muscle are as near to each other as in real scans: no single value tells an organ.
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
        offset: where the reference patient's origin lies in the volume, in mm from the middle along (z, y, x).
        fat: thickness of the subcutaneous fat in mm.
        hu: HU of each tissue.
        shift: (z, y, x) in mm by which an organ lies elsewhere than in the reference patient.
        size: factor of an organ's radii along (z, y, x).
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
