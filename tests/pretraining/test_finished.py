from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nnssl.cli import transfer
from nnssl.pretraining.finished import FinishedRun, finished_run, ways_on
from nnssl.pretraining.setup import Setup
from tests.runs import make_setup

SOURCE = "Dataset500_Source"


def test_finished_run__is_a_path_and_keeps_its_lines(tmp_path: Path) -> None:
    run = FinishedRun(tmp_path / "fold_all")
    run.next = ("a", "b")
    assert isinstance(run, Path) and run == tmp_path / "fold_all" and hash(run) == hash(tmp_path / "fold_all")
    assert {tmp_path / "fold_all": 1}[run] == 1 and str(run) == str(tmp_path / "fold_all")
    run.mkdir()
    (run / "x.txt").write_text("x")
    assert [file.name for file in run.iterdir()] == ["x.txt"] and run.parent == tmp_path
    copies = [copy.copy(run), copy.deepcopy(run), *(pickle.loads(pickle.dumps(run, p)) for p in range(6))]
    assert all(c == run and c.next == ("a", "b") for c in copies)
    derived = (run / "x.txt", run.parent, run.resolve(), run.with_name("y"))
    assert all(isinstance(path, Path) and path.next == () for path in derived)  # type: ignore[attr-defined]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return tmp_path


def _setup(folders: Path, method: str = "vox2vec", **changes: Any) -> Setup:
    (folders / "run of").mkdir()
    setup = make_setup(folders / "run of", method, volumes=2)
    run = folders / "results" / SOURCE / f"nnssl_{method}__{setup.plans['plans_name']}__3d_fullres" / "fold_all"
    return replace(setup, folder=run, **changes)


def _labelled(folders: Path, name: str, cases: int = 5, channel: str = "CT") -> None:
    labels = folders / "raw" / name / "labelsTr"
    labels.mkdir(parents=True)
    for i in range(cases):
        (labels / f"case_{i}.nii.gz").touch()
    content = {"channel_names": {"0": channel}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}
    (labels.parent / "dataset.json").write_text(json.dumps(content))


def test_ways_on__nobody_knows_the_target(folders: Path) -> None:
    run = finished_run(_setup(folders), folders / "results", "cpu")
    assert run.next == (
        "nnssl_transfer -s 500 -t TARGET -m vox2vec",
        "nnUNetv2_train TARGET 3d_fullres 0 -tr nnUNetTrainer_Vox2vecProbe -p nnUNetPlansFrom500_vox2vec -device cpu",
        "nnUNetv2_plan_and_preprocess -d TARGET -c 3d_fullres",
        "nnUNetv2_train TARGET 3d_fullres 0 -tr nnUNetTrainer_Vox2vecProbe -device cpu",
    )
    assert run.name == "fold_all"


def test_ways_on__the_only_labelled_dataset_of_the_modality(folders: Path) -> None:
    _labelled(folders, "Dataset017_Target", cases=4)
    _labelled(folders, "Dataset018_Heads", channel="T1")
    (folders / "preprocessed" / "Dataset017_Target").mkdir()
    setup = _setup(folders, "voco")
    transferred, plain = ways_on(setup, folders / "results", "cuda")
    assert transferred.commands == (
        "nnssl_transfer -s 500 -t 17 -m voco",
        "nnUNetv2_train 17 3d_fullres all -tr nnUNetTrainer_VoCoFinetune -p nnUNetPlansFrom500_voco",
    )
    # the trainer that goes on in the plans' network needs the same one: on other plans it is a probe
    assert plain.commands[1] == "nnUNetv2_train 17 3d_fullres all -tr nnUNetTrainer_SSLProbe"
    (folders / "preprocessed" / "Dataset017_Target" / "nnUNetPlans.json").touch()
    assert ways_on(setup, folders / "results", "cuda")[1].commands == plain.commands[1:]
    _labelled(folders, "Dataset019_More")
    assert "TARGET" in ways_on(setup, folders / "results", "cuda")[0].commands[0]


def test_ways_on__other_finished_runs(folders: Path) -> None:
    setup = _setup(folders)
    other = setup.folder.with_name("fold_0") / "checkpoint_final.pth"
    other.parent.mkdir(parents=True)
    other.touch()
    transferred, plain = ways_on(setup, folders / "results", "cpu")
    arguments = transfer.parser().parse_args(transferred.commands[0].split()[1:])
    chosen = (arguments.plans, arguments.configuration, arguments.fold)
    assert chosen == ("nnUNetPlans", "3d_fullres", "all")
    assert plain.commands[-1].startswith(f"nnssl_checkpoint={setup.folder} nnUNetv2_train TARGET ")
