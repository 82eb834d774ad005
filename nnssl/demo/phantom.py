"""Computer-drawn torso CTs of random patients; the same seed gives the same patient."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnssl.demo.anatomy import LABELS, paint_patient
from nnssl.demo.patient import Field, Grid, Patient, blur, draw_patient, smooth_noise

SHAPE = (84, 84, 108)  # voxels (Z, Y, X)
SPACING_MM = (4.0, 3.7, 3.7)  # median; patients differ by up to 10 percent
_MIDDLE_Z = 165.0  # mm above the iliac crest, in the middle of the scan
_DEFORMATIONS = ((80.0, 6.5), (30.0, 2.5))  # mm: distance, and size


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
    hu += 5 * smooth_noise(rng, SHAPE, (3, 3, 3)) * (hu > -500)  # no tissue is uniform
    return Torso(_scan(hu, patient, rng), labels, (float(spacing[0]), float(spacing[1]), float(spacing[2])))


def _coordinates(
    patient: Patient, spacing: NDArray[np.float64], rng: np.random.Generator
) -> tuple[Grid, tuple[Field, Field]]:
    """Coordinates of every voxel in the reference patient, and (y, x) in mm in the scanner, for the table."""
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
    """Paint a curved table with a foam mattress into the air around the patient."""
    y, x = table
    lowest = float(y[hu > -500].max())
    sag = y - lowest + 0.0011 * x**2
    air = (hu == -1000) & (np.abs(x) < 190) & (y > 40)  # nothing was painted there
    hu[air & (sag > -8) & (sag < 6)] = -930
    hu[air & (sag >= 6) & (sag < 10)] = -250


def _scan(hu: Field, patient: Patient, rng: np.random.Generator) -> NDArray[np.int16]:
    """Simulate the scanner: edges as wide as a voxel, and noise that is correlated between neighbours."""
    noise = blur(rng.standard_normal(SHAPE).astype(np.float32), (0.4, 0.7, 0.7))
    noise *= patient.noise / noise.std()
    noise *= 0.5 + 0.5 * blur((hu > -500).astype(np.float32), 8)  # most photons are lost on the way to the middle
    return np.round((blur(hu, (0.4, 0.5, 0.5)) + noise).clip(-1024, 3071)).astype(np.int16)


UNLABELLED = "Dataset500_PhantomTorso"
LABELLED = "Dataset017_PhantomOrgans"
_ENDING = ".nii.gz"


def write_unlabelled(raw: Path, num_cases: int, seed: int = 0) -> Path:
    """Write `raw/Dataset500_PhantomTorso` with images only, `torso_000`, ..., and return that folder."""
    folder = raw / UNLABELLED
    for case in range(num_cases):
        _write(make_torso(np.random.default_rng((seed, 500, case))), folder, f"torso_{case:03d}", "Tr", labelled=False)
    _write_dataset_json(folder, {}, num_cases)
    return folder


def write_labelled(raw: Path, num_training: int, num_test: int, seed: int = 0) -> Path:
    """Write `raw/Dataset017_PhantomOrgans` with labels, test cases in imagesTs and labelsTs, and return that folder.

    No patient is in the unlabelled dataset.
    """
    folder = raw / LABELLED
    for case in range(num_training + num_test):
        torso = make_torso(np.random.default_rng((seed, 17, case)))
        part = "Tr" if case < num_training else "Ts"
        _write(torso, folder, f"organs_{case:03d}", part, labelled=True)
    _write_dataset_json(folder, LABELS, num_training)
    return folder


def _write(torso: Torso, folder: Path, name: str, part: str, labelled: bool) -> None:
    import SimpleITK as sitk

    files: list[tuple[Path, NDArray[Any]]] = [(folder / f"images{part}" / f"{name}_0000{_ENDING}", torso.hu)]
    if labelled:
        files.append((folder / f"labels{part}" / f"{name}{_ENDING}", torso.labels))
    for file, array in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        image = sitk.GetImageFromArray(array)
        image.SetSpacing(torso.spacing[::-1])
        sitk.WriteImage(image, str(file), useCompression=True)


def _write_dataset_json(folder: Path, labels: dict[str, int], num_training: int) -> None:
    content = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, **labels},
        "numTraining": num_training,
        "file_ending": _ENDING,
        "description": "Computer-drawn torso scans of the nnssl demo: no patient was scanned.",
    }
    # written last: a folder with this file is complete
    (folder / "dataset.json").write_text(json.dumps(content, indent=2) + "\n")
