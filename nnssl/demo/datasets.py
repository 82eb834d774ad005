"""Two datasets of phantom torsos in nnU-Net's raw format: many scans without labels, a few with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnssl.demo.anatomy import LABELS
from nnssl.demo.phantom import Torso, make_torso

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

    All patients are others than those of the unlabelled dataset.
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
    # last, so that a folder with this file is complete
    (folder / "dataset.json").write_text(json.dumps(content, indent=2) + "\n")
