"""A preprocessed dataset of empty volumes with real label files, and trainings that only pretend."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from nnssl.benchmarking.trainings import Training
from tests.benchmarking.labels import LABELS, cube, write_labels
from tests.finetuning.plans import small_plans

DATASET = "Dataset017_Target"
PLANS = "nnUNetPlans"


def make_dataset(root: Path, monkeypatch: pytest.MonkeyPatch, cases: int = 10, name: str = PLANS) -> Path:
    """nnU-Net's three folders in the environment; returns the preprocessed dataset."""
    for variable in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{variable}", str(root / variable))
        (root / variable).mkdir(exist_ok=True)
    folder = root / "preprocessed" / DATASET
    (folder / f"{name}_3d_fullres").mkdir(parents=True)
    description = {"labels": LABELS, "file_ending": ".nii.gz", "channel_names": {"0": "CT"}, "numTraining": cases}
    (folder / "dataset.json").write_text(json.dumps(description))
    (folder / f"{name}.json").write_text(json.dumps(small_plans(name=name) | {"image_reader_writer": "SimpleITKIO"}))
    for i in range(cases):
        for end in (".b2nd", "_seg.b2nd", ".pkl"):
            (folder / f"{name}_3d_fullres" / f"case_{i}{end}").touch()
        write_labels(folder / "gt_segmentations" / f"case_{i}.nii.gz", cube() + cube(2, (4, 4, 11)))
    return folder


def pretend(task: Training) -> None:
    """What a training leaves: predictions that are off by a voxel in the spleen, but only if it had few labels."""
    shift = 1 if task.fold.cases < 4 else 0
    if task.method.name == "good":
        shift = 0
    for case in task.workspace.test.cases:
        labels = cube() + np.roll(cube(2, (4, 4, 11)), shift, axis=0)
        write_labels(task.predictions / f"{case}.nii.gz", labels)
    entries = [{"prediction_file": str(task.predictions / f"{c}.nii.gz")} for c in task.workspace.test.cases]
    (task.predictions / "summary.json").write_text(json.dumps({"metric_per_case": entries}))
    moved = {0: {"exp_avg": torch.zeros(3, 4)}, 1: {"exp_avg": torch.zeros(5)}}
    torch.save({"optimizer_state": {"state": moved}}, task.folder / "checkpoint_final.pth")


def tree(folder: Path) -> dict[str, str]:
    """Every file below a folder, and what it is or holds."""
    found = {}
    for root, _, files in os.walk(folder):
        for file in files:
            path = Path(root) / file
            found[str(path)] = os.readlink(path) if path.is_symlink() else str(path.stat().st_mtime_ns)
    return found
