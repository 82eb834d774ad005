"""One real training through the command, from raw files; tests/benchmarking has the rest without training."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np

from tests.phantoms import ct_volume, write_ct_dataset, write_volume
from tests.shell import Walk

PLANS = "nnsslPlans_tiny"
COMMANDS = f"""
nnssl_plan_and_preprocess -d 17 -p {PLANS} -np 1
export nnssl_num_epochs=1 nnssl_num_iterations_per_epoch=1 nnssl_num_val_iterations_per_epoch=1
nnssl_benchmark -d 17 -p {PLANS} -o bench -cases 1 -seeds 1 -device cpu -tr random=nnUNetTrainer_SSLLinearProbe,,random
"""


def test_main__trains_with_nnunets_command_and_scores_labels_ts(tmp_path: Path) -> None:
    walk = Walk(tmp_path)
    walk.environment["nnUNet_n_proc_DA"] = "0"
    target = write_ct_dataset(walk.raw, 17, "Organs", 3, labelled=True)
    hu, labels = ct_volume((16, 24, 24), np.random.default_rng(9))
    write_volume(target / "imagesTs" / "tested_0000.nii.gz", hu, (3.0, 1.5, 1.5))
    write_volume(target / "labelsTs" / "tested.nii.gz", labels, (3.0, 1.5, 1.5))
    said = walk.run(COMMANDS)
    assert "test set: 1 cases (labelsTs); 3 cases for training" in said and "Backbone from random" in said

    own = tmp_path / "bench" / "nnUNet_preprocessed" / "Dataset017_Organs"
    assert json.loads((own / "splits_final.json").read_text())[0]["val"] == ["tested"]
    assert not (walk.folder / "nnUNet_preprocessed" / "Dataset017_Organs" / "splits_final.json").exists()
    assert not list((walk.folder / "nnUNet_preprocessed").rglob("tested*"))
    assert {f.parent.name.removeprefix(PLANS) for f in own.rglob("tested.b2nd")} == {"_3d_fullres", "_3d_fullres_body"}
    fold = next((tmp_path / "bench" / "nnUNet_results" / "random").rglob("fold_0"))
    assert {"summary.json", "nnssl_evaluation.json", "tested.nii.gz"} <= {
        f.name for f in (fold / "validation").iterdir()
    }
    rows = list(csv.DictReader((tmp_path / "bench" / "results" / "results.csv").open()))
    assert [(r["method"], r["labelled_cases"], r["case"], r["structure"]) for r in rows] == [
        ("random", "1", "tested", "liver"), ("random", "1", "tested", "spine")]  # fmt: skip
