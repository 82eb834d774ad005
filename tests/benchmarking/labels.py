"""Label files made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from tests.finetuning.plans import small_plans

LABELS: dict[str, Any] = {"background": 0, "liver": 1, "spleen": 2}
SPACING = (3.0, 1.0, 0.5)  # of z, y, x


def write_labels(file: Path, labels: np.ndarray, spacing: tuple[float, ...] = SPACING, origin: float = 0.0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(labels.astype(np.uint8))
    image.SetSpacing(spacing[::-1])
    image.SetOrigin((origin,) * 3)
    sitk.WriteImage(image, str(file))


def cube(value: int = 1, at: tuple[int, int, int] = (4, 4, 4), size: int = 6) -> np.ndarray:
    labels = np.zeros((14, 16, 18), np.uint8)
    z, y, x = at
    labels[z : z + size, y : y + size, x : x + size] = value
    return labels


def describe(folder: Path, **changes: Any) -> None:
    """dataset.json and plans.json, as nnU-Net's prediction leaves them beside its files."""
    content = {"labels": LABELS, "file_ending": ".nii.gz", "channel_names": {"0": "CT"}, "numTraining": 2} | changes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(content))
    (folder / "plans.json").write_text(json.dumps(small_plans() | {"image_reader_writer": "SimpleITKIO"}))
