"""Pairs of jobs that prepare the same dataset: each case once, no healthy volume called bad, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from nnssl.data.plan_and_preprocess import plan_and_preprocess
from nnssl.data.records import Records
from nnssl.data.storage import body_folder, claimed_cases
from tests.data import jobs
from tests.data.conftest import Folders
from tests.phantoms import ct_volume, write_ct_dataset, write_volume
from tests.pretrainings import CT_JSON, finish_pretraining, tiny_plans

SHAPE = (12, 20, 20)
CASES = [f"case_{i:03d}" for i in range(6)]


@pytest.fixture
def variables(folders: Folders) -> dict[str, str]:
    return {f"nnUNet_{name}": str(folder) for name, folder in folders._asdict().items()}


def _made(data: Path) -> Counter[str]:
    """How often each case was made, by the lines of the records."""
    lines = [json.loads(line) for line in (body_folder(data) / "records.jsonl").read_text().split("\n") if line]
    return Counter(line["case"] for line in lines if "prepared" in line and "begun" not in line)


def _check(home: Path, data: str, cases: list[str] = CASES) -> None:
    assert _made(home / data) == dict.fromkeys(cases, 1)
    assert all(record.reason is None and record.files for record in Records(home / data).all())
    assert {path.name for path in home.iterdir() if path.name.startswith(".")} == set()


def test_two_plans(folders: Folders, variables: dict[str, str], tmp_path: Path) -> None:
    write_ct_dataset(folders.raw, 1, "X", 6, SHAPE, labelled=True)
    said = jobs.together([(jobs.plan, {"dataset_ids": [1]})] * 2, tmp_path, variables)
    home = folders.preprocessed / "Dataset001_X"
    _check(home, "nnsslPlans_tiny_3d_fullres")
    assert said.count("fingerprint of 6 volumes") == 1 and said.count("6 volumes ready in") == 2
    report = json.loads((home / "nnsslPlans_tiny_left_out.json").read_text())
    assert report["orientation"]["counts"] == {"LPS": 6} and report["left_out"] == {}


def test_two_pretrainings(folders: Folders, variables: dict[str, str], tmp_path: Path) -> None:
    write_ct_dataset(folders.raw, 1, "X", 6, SHAPE)
    said = jobs.together([(jobs.pretrain, {"dataset_ids": [1]})] * 2, tmp_path, variables)
    _check(folders.preprocessed / "Dataset001_X", "nnsslPlans_tiny_3d_fullres")
    assert said.count(f"trains on {', '.join(CASES)}") == 2


def test_a_transfer_and_a_plan(folders: Folders, variables: dict[str, str], tmp_path: Path) -> None:
    write_ct_dataset(folders.raw, 500, "Source", 2, SHAPE)
    write_ct_dataset(folders.raw, 17, "Target", 6, SHAPE, labelled=True)
    jobs.plan(dataset_ids=[500], preprocess=False)
    plans = json.loads((folders.preprocessed / "Dataset500_Source" / "nnsslPlans_tiny.json").read_text())
    window = plans["foreground_intensity_properties_per_channel"]
    finish_pretraining(folders.results, "Dataset500_Source", tiny_plans(
        spacing=plans["configurations"]["3d_fullres"]["spacing"]) | {
        "foreground_intensity_properties_per_channel": window}, CT_JSON)  # fmt: skip
    said = jobs.together(
        [(jobs.finetune, {"source": 500, "target": 17, "num_processes": 1}), (jobs.plan, {"dataset_ids": [500, 17]})],
        tmp_path, variables,
    )  # fmt: skip
    _check(folders.preprocessed / "Dataset017_Target", "nnsslPlans_tinyFrom500_3d_fullres")
    assert said.count("6 volumes ready in") == 2


def test_two_folds_with_volumes_without_labels(folders: Folders, variables: dict[str, str], tmp_path: Path) -> None:
    import numpy as np

    raw = write_ct_dataset(folders.raw, 1, "X", 2, SHAPE, labelled=True)
    for case in CASES[:4]:
        hu, _ = ct_volume(SHAPE, np.random.default_rng(1))
        write_volume(raw / "imagesUn" / f"{case}_0000.nii.gz", hu, (3.0, 1.5, 1.5))
    jobs.plan(dataset_ids=[1], preprocess=False)
    home = folders.preprocessed / "Dataset001_X"
    plans = json.loads((home / "nnsslPlans_tiny.json").read_text())
    said = jobs.together([(jobs.distil, {"plans": plans, "home": home})] * 2, tmp_path, variables)
    _check(home, "nnsslPlans_tiny_3d_fullres_unlabelled", CASES[:4])
    assert said.count(f"learns from {', '.join(CASES[:4])}") == 2


def test_what_a_killed_job_was_at_is_taken_over(folders: Folders, variables: dict[str, str], tmp_path: Path) -> None:
    write_ct_dataset(folders.raw, 1, "X", 6, SHAPE)
    data = folders.preprocessed / "Dataset001_X" / "nnsslPlans_tiny_3d_fullres"
    job = jobs.start((jobs.plan, {"dataset_ids": [1]}), tmp_path / "log", variables, stuck_after=2)
    until = time.monotonic() + 300
    while not (len(Records(data).all()) >= 2 and claimed_cases(data)) and time.monotonic() < until:
        time.sleep(0.02)
    assert job.pid is not None
    os.kill(job.pid, signal.SIGKILL)
    job.join(60)
    done = len(Records(data).all())
    assert claimed_cases(data) and 2 <= done < 6
    (result,) = plan_and_preprocess([1], preset="nnsslPlans_tiny", num_processes=1, show_progress=False)
    assert result.cases == CASES and max(_made(data).values()) == 1
    assert not (data.parent / ".writing").exists()
    report = json.loads((data.parent / "nnsslPlans_tiny_left_out.json").read_text())
    assert report["orientation"]["counts"] == {"LPS": 6}
