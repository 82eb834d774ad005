"""A dataset of two organs from two scanners; of the second scanner's cases nobody has annotated the kidney."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from nnssl.data.plan_and_preprocess import plan_and_preprocess
from tests.phantoms import ellipsoid, write_dataset_json, write_volume

NAME = "Dataset017_Organs"
PLANS = "nnsslPlans_tiny"
SHAPE = (12, 24, 24)
SPACING = (1.5, 1.5, 1.5)
LUNG, KIDNEY = 1, 2


def organs(scanner: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """CT in HU and all labels, (Z, Y, X); the second scanner's images have stripes."""
    hu = rng.normal(40, 5, size=SHAPE)
    labels = np.zeros(SHAPE, dtype=np.uint8)
    for label, x, value in ((LUNG, 0.3, -300.0), (KIDNEY, 0.7, 300.0)):
        move, radii = rng.uniform(-0.1, 0.1, 3), rng.uniform(0.14, 0.2, 3)
        organ = ellipsoid(SHAPE, (0.5, 0.5, x), radii.tolist(), move)
        hu[organ] += value
        labels[organ] = label
    if scanner:
        hu[:, ::2] += 200
    return np.round(hu).astype(np.int16), labels


def write_half_annotated(raw: Path, num_cases: int = 8, listed: bool = True) -> Path:
    """Write the raw dataset; odd cases are the second scanner's, in whose label maps there is no kidney.

    `listed`: dataset.json says so.
    """
    folder = raw / NAME
    write_dataset_json(folder, ["CT"], ["lung", "kidney"], num_cases, ".nii.gz")
    given = {}
    for case in range(num_cases):
        hu, labels = organs(case % 2, np.random.default_rng((17, case)))
        if case % 2:
            labels[labels == KIDNEY] = 0
            given[f"case_{case:03d}"] = ["lung"]
        write_volume(folder / "imagesTr" / f"case_{case:03d}_0000.nii.gz", hu, SPACING)
        write_volume(folder / "labelsTr" / f"case_{case:03d}.nii.gz", labels, SPACING)
    if listed:
        file = folder / "dataset.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"annotated_labels": given}))
    return folder


def prepare(preprocessed: Path, features: tuple[int, ...] = (8, 16, 16), patch: tuple[int, int, int] = SHAPE) -> None:
    """Plan with a small U-Net and preprocess; all cases train and the last two validate."""
    plan_and_preprocess([17], preset=PLANS, num_processes=1, show_progress=False)
    home = preprocessed / NAME
    plans = json.loads((home / f"{PLANS}.json").read_text())
    configuration = plans["configurations"]["3d_fullres"]
    configuration["patch_size"] = list(patch)
    stages = len(features)
    configuration["architecture"]["arch_kwargs"] |= {
        "n_stages": stages,
        "features_per_stage": list(features),
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [1] * (stages - 1),
    }
    (home / f"{PLANS}.json").write_text(json.dumps(plans))
    cases = sorted(file.stem for file in (home / configuration["data_identifier"]).glob("*.pkl"))
    (home / "splits_final.json").write_text(json.dumps([{"train": cases[:-2], "val": cases[-2:]}]))


def without_raw(root: Path) -> None:
    """Remove the raw dataset, so that lists given to a trainer are not compared with its own."""
    shutil.rmtree(root / "raw" / NAME)
