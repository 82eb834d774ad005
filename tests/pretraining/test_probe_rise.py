"""What the probe is for: its Dice rises because the pretraining gets better, not only because its heads learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from nnssl.data.loader import Cases
from nnssl.data.volumes import VolumeFolder
from nnssl.methods.vox2vec.method import Vox2vecConfig
from nnssl.networks.build import resolve_configuration
from nnssl.pretraining.loop import Pretraining
from nnssl.pretraining.metrics import read_rows
from nnssl.pretraining.probe_data import ProbeData
from nnssl.pretraining.setup import Setup
from tests.pretraining.labelled import add_labels
from tests.runs import CPU, fpn_plans
from tests.volumes import add_volume, make_folder

SIZE = (8, 24, 24)
QUARTERS = {"upper_left": (-1, -1), "upper_right": (-1, 1), "lower_left": (1, -1), "lower_right": (1, 1)}


def _phantom(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Image (1, Z, Y, X) and labels (Z, Y, X): four rods that look alike between a bright and a dark wall.

    The walls cross somewhere near the middle. Which rod is which follows from the side of the walls that it is on.
    """
    _, y, x = np.meshgrid(*map(np.arange, SIZE), indexing="ij")
    _, middle_y, middle_x = np.array(SIZE) / 2 + rng.uniform(-2, 2, 3)
    image = 0.5 + 0.004 * rng.standard_normal(SIZE)
    image[np.abs(x - middle_x) < 1.2] = 0.9
    image[np.abs(y - middle_y) < 1.2] = 0.1
    labels = np.zeros(SIZE, dtype=np.int16)
    for value, (side_y, side_x) in enumerate(QUARTERS.values(), start=1):
        rod = (y - middle_y - 5 * side_y) ** 2 + (x - middle_x - 5 * side_x) ** 2 < 9
        image[rod], labels[rod] = 0.65, value
    return image[None], labels


def _labelled_folder(root: Path) -> VolumeFolder:
    folder = make_folder(root / "preprocessed", name="Dataset017_Quarters")
    for i in range(8):
        image, labels = _phantom(np.random.default_rng((17, i)))
        add_volume(folder, f"case_{i}", image)
        add_labels(folder.images, f"case_{i}", labels)
    return folder


def _dice_by_epoch(folder: VolumeFolder, out: Path, learning_rate: float) -> list[float]:
    """Of the linear head, in a pretraining on the images of all cases."""
    out.mkdir()
    names = folder.cases()
    config = Vox2vecConfig(num_epochs=4, steps_per_epoch=30, val_steps_per_epoch=0, batch_size=2,
                           patch_size=(8, 16, 16), voxels_per_pair=128, exclude_radius_mm=2.0,
                           learning_rate=learning_rate)  # fmt: skip
    labels = {name: (value,) for value, name in enumerate(QUARTERS, start=1)}
    plans = fpn_plans()
    probe = ProbeData(folder, tuple(names[:6]), tuple(names[6:]), labels, every=1)
    setup = Setup("vox2vec", config, plans, {"labels": {"background": 0}}, {}, "3d_fullres", "all",
                  Cases.of([folder], [names]), Cases.of([folder], [[]]), out, probe=probe,
                  resolved=resolve_configuration(plans, "3d_fullres"))  # fmt: skip
    Pretraining(setup, CPU).run()
    return [row["probe_linear_dice"] for row in read_rows(out / "metrics.jsonl")]


@pytest.mark.slow
def test_probe__its_dice_rises_while_the_pretraining_gets_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control differs in its rate alone: the same crops, heads and steps of the heads, on random features."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    folder = _labelled_folder(tmp_path)
    learning = _dice_by_epoch(folder, tmp_path / "learning", 3e-3)
    control = _dice_by_epoch(folder, tmp_path / "control", 1e-9)
    assert learning[-1] > control[-1] + 0.12
    assert learning[-1] > learning[0] + 0.15
