"""Torso CTs that are drawn, not measured: every call makes another patient, and the same seed the same one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnssl.demo.anatomy import paint_patient
from nnssl.demo.patient import Patient, draw_patient
from nnssl.demo.shapes import Field, Grid, blur, smooth_noise

SHAPE = (84, 84, 108)  # voxels (Z, Y, X)
SPACING_MM = (4.0, 3.7, 3.7)  # median; that of a patient differs by a few percent
_MIDDLE_Z = 165.0  # mm above the iliac crest, in the middle of the scan
_DEFORMATIONS = ((80.0, 6.5), (30.0, 2.5))  # mm: over which distance, how much


@dataclass(frozen=True)
class Torso:
    """A scan: HU (Z, Y, X) int16, labels (Z, Y, X) uint8 as in `LABELS`, voxel size (z, y, x) in mm."""

    hu: NDArray[np.int16]
    labels: NDArray[np.uint8]
    spacing: tuple[float, float, float]


def make_torso(rng: np.random.Generator) -> Torso:
    """Draw a patient and scan it."""
    patient = draw_patient(rng)
    spacing = np.asarray(SPACING_MM) * (rng.choice([0.9, 1.0, 1.0, 1.1]), *[rng.uniform(0.95, 1.05)] * 2)
    grid, table = _coordinates(patient, spacing, rng)
    vessels = [smooth_noise(rng, SHAPE, 9 / np.asarray(SPACING_MM)) for _ in range(2)]
    hu, labels = paint_patient(grid, patient, np.hypot(*vessels))
    _lay_on_table(hu, table)
    hu += 5 * smooth_noise(rng, SHAPE, (3, 3, 3)) * (hu > -500)  # no tissue is the same everywhere
    return Torso(_scan(hu, patient, rng), labels, (float(spacing[0]), float(spacing[1]), float(spacing[2])))


def _coordinates(
    patient: Patient, spacing: NDArray[np.float64], rng: np.random.Generator
) -> tuple[Grid, tuple[Field, Field]]:
    """Where every voxel lies in the reference patient; and (y, x) in mm in the scanner, which the table follows."""
    axes = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * s for n, s in zip(SHAPE, spacing, strict=True)], indexing="ij")
    z, y, x = ((axis - patient.offset[i]) / patient.scale[i] for i, axis in enumerate(axes))
    y = y + 10  # the table needs room below the patient
    field = [z + _MIDDLE_Z, y, x]
    for scale, amount in _DEFORMATIONS:
        for i in range(3):
            field[i] = field[i] + amount * smooth_noise(rng, SHAPE, scale / spacing)
    table = np.asarray(y * patient.scale[1], np.float32), np.asarray(axes[2], np.float32)
    return Grid(*(np.asarray(f, np.float32) for f in field)), table


def _lay_on_table(hu: Field, table: tuple[Field, Field]) -> None:
    """A curved shell with a mattress of foam, wherever the patient leaves air."""
    y, x = table
    lowest = float(y[hu > -500].max())
    sag = y - lowest + 0.0011 * x**2
    air = (hu == -1000) & (np.abs(x) < 190) & (y > 40)  # nothing was painted there
    hu[air & (sag > -8) & (sag < 6)] = -930
    hu[air & (sag >= 6) & (sag < 10)] = -250


def _scan(hu: Field, patient: Patient, rng: np.random.Generator) -> NDArray[np.int16]:
    """What a scanner makes of it: edges as wide as a voxel, and noise that neighbours share."""
    noise = blur(rng.standard_normal(SHAPE).astype(np.float32), (0.4, 0.7, 0.7))
    noise *= patient.noise / noise.std()
    noise *= 0.5 + 0.5 * blur((hu > -500).astype(np.float32), 8)  # most photons are lost on the way to the middle
    return np.round((blur(hu, (0.4, 0.5, 0.5)) + noise).clip(-1024, 3071)).astype(np.int16)
