"""Targets made by hand, and a small raw dataset whose images determine a label."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nnssl.classification.labels import Target
from tests.phantoms import ct_volume, write_dataset_json, write_volume
from tests.pretrainings import tiny_plans, write_pretraining


def target_of(values: Sequence[float], classes: Sequence[str] = (), groups: Sequence[str] = ()) -> Target:
    """A target of cases c00, c01, ..."""
    cases = tuple(f"c{i:02d}" for i in range(len(values)))
    return Target("grade", cases, np.array(values, float), tuple(classes), tuple(groups) or cases)


def write_bright_and_dark(raw: Path, cases: int = 10) -> Path:
    """Dataset600: torsos; every second one is 150 HU brighter, and `labels.csv` says so, with a number too."""
    folder = raw / "Dataset600_Scans"
    write_dataset_json(folder, ["CT"], [], cases, ".nii.gz")
    lines = ["case,look,level,patient"]
    for i in range(cases):
        volume, _ = ct_volume((12, 24, 24), np.random.default_rng(i))
        bright = i % 2
        volume = np.where(volume > -500, volume + 150 * bright, volume).astype(np.int16)
        write_volume(folder / f"imagesTr/s{i:02d}_0000.nii.gz", volume, (3.0, 1.5, 1.5))
        lines.append(f"s{i:02d},{'bright' if bright else 'dark'},{bright + 0.01 * i:.2f},")
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


def write_run(results: Path, **options: Any) -> Path:
    """A pretraining with random weights, of patches that cover the torsos."""
    return write_pretraining(results, tiny_plans(patch_size=[16, 32, 32]), **options).parent
