"""The whole command on trainings that only pretend; tests/cli/test_benchmark.py has a real one."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import nnssl
import nnssl_trainers
from nnssl.benchmarking import workflow
from nnssl.benchmarking.benchmark import _warn_of_few
from nnssl.benchmarking.trainings import Training
from nnssl.benchmarking.workflow import TaskFailed
from nnssl.core.errors import UserError
from nnssl.core.lock import Lock
from tests.benchmarking.dataset import DATASET, make_dataset, pretend, tree
from tests.benchmarking.labels import cube, write_labels

METHODS = ["base=nnUNetTrainer", "good=nnUNetTrainer"]


@pytest.fixture
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Training]:
    """A dataset of ten cases; the trainings that were asked for."""
    make_dataset(tmp_path, monkeypatch)
    done: list[Training] = []

    def run(task: Training) -> None:
        done.append(task)
        pretend(task)

    monkeypatch.setattr(workflow, "run_task", run)
    return done


def _run(root: Path, **options: Any) -> Any:
    defaults = {
        "dataset": 17,
        "trainers": METHODS,
        "output": root / "out",
        "cases": [2, 8],
        "seeds": 2,
        "device": "cpu",
        "num_processes": 1,
    }
    return nnssl.benchmark(**{**defaults, **options})


def test_benchmark__folds_are_nested_subsets_with_one_test_set(tmp_path: Path, ran: list[Training]) -> None:
    before = tree(tmp_path / "preprocessed")
    results = _run(tmp_path)
    assert len(ran) == 8 and [t.method.name for t in ran[:2]] == ["base", "good"]
    splits = json.loads((tmp_path / "out" / "nnUNet_preprocessed" / DATASET / "splits_final.json").read_text())
    assert [len(s["train"]) for s in splits] == [2, 8, 2, 8] and len({tuple(s["val"]) for s in splits}) == 1
    assert set(splits[0]["train"]) < set(splits[1]["train"]) and splits[0]["train"] != splits[2]["train"]
    assert not set(splits[1]["train"]) & set(splits[1]["val"]) and len(splits[1]["val"]) == 2
    assert tree(tmp_path / "preprocessed") == before  # the user's folder
    assert results.scores["base", 8, 0][0].tolist() == [[1, 1], [1, 1]]
    assert results.scores["base", 2, 0][0].tolist() == [[1, 5 / 6], [1, 5 / 6]]
    assert results.parameters == {"base": 17, "good": 17}
    found = {f.name for f in (tmp_path / "out" / "results").iterdir()}
    assert found == {"results.csv", "results.md", "results.tex", "comparison.csv", "labels.png", "parameters.png"}
    text = (tmp_path / "out" / "results" / "results.md").read_text()
    assert "| 2 (25 %) | good | 1.000 ± 0.000 | 1.000 ± 0.000 | 1.000 ± 0.000 | +0.083, 2 of 2 seeds |" in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tolerance": ["brain=3"]}, "-tolerance names brain, which is no structure"),
        ({"num_processes": 0}, "-np 0 leaves nobody to work"),
        ({"output": __file__}, "is a file; -o takes a folder"),
    ],
)
def test_benchmark__what_the_scores_need_is_looked_at_before_the_trainings(
    tmp_path: Path, ran: list[Training], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        _run(tmp_path, **options)
    assert ran == [] and not (tmp_path / "out").exists()


def test_benchmark__goes_on_and_grows(tmp_path: Path, ran: list[Training]) -> None:
    _run(tmp_path, seeds=1)
    del ran[:]
    _run(tmp_path, seeds=1)
    assert ran == []
    results = _run(tmp_path, cases=[2, 4], seeds=2)
    assert sorted((t.method.name, t.fold.cases, t.fold.seed) for t in ran) == [
        (m, n, s) for m in ("base", "good") for n, s in ((2, 1), (4, 0), (4, 1))]  # fmt: skip
    assert {cases for _, cases, _ in results.scores} == {2, 4}


def test_benchmark__parts_share_the_work(tmp_path: Path, ran: list[Training], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        first = _run(tmp_path, num_parts=3, part_id=0)
    assert (
        "5 trainings are not finished" in caplog.text
        and "good: 2 cases seed 0, 2 cases seed 1, 8 cases seed 1" in caplog.text
    )
    keys = [{t.key for t in ran}]
    for part in (1, 2):
        del ran[:]
        last = _run(tmp_path, num_parts=3, part_id=part)
        keys.append({t.key for t in ran})
    assert len(first.scores) == 3 and len(last.scores) == 8
    assert sum(map(len, keys)) == 8 == len(set.union(*keys))


def test_benchmark__leaves_what_another_job_trains(
    tmp_path: Path, ran: list[Training], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "out" / "logs").mkdir(parents=True)
    with Lock(tmp_path / "out" / "logs" / "good_fold_1.lock", "the other job"), caplog.at_level(logging.INFO):
        _run(tmp_path)
    assert len(ran) == 7 and "good_fold_1" not in {t.key for t in ran}
    assert f"process {os.getpid()}" in caplog.text and "1 trainings are not finished" in caplog.text
    _run(tmp_path)
    assert ran[-1].key == "good_fold_1" and not list((tmp_path / "out" / "logs").glob("*.lock"))


@pytest.mark.parametrize(("test", "training", "seeds", "words"), [
    (5, 20, 1, ["5 of at least 8 test cases and 1 of at least 3 seeds", "-seeds 3 and -test 32 "]),
    (3, 4, 3, ["3 of at least 8 test cases", "with more labelled cases"]),
    (8, 8, 3, []),
])  # fmt: skip
def test_warn_of_few__before_the_trainings(
    test: int, training: int, seeds: int, words: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    workspace: Any = SimpleNamespace(test=SimpleNamespace(cases=["t"] * test, training=["c"] * training))
    _warn_of_few(workspace, seeds)
    assert bool(caplog.text) is bool(words) and all(word in caplog.text for word in words)


def test_benchmark__early_stopping_on_test_cases_is_a_warning(
    tmp_path: Path, ran: list[Training], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", str(Path(nnssl_trainers.__file__).parent))
    items = ["p=nnUNetTrainer_PimpicFinetune,,random", "s=nnUNetTrainer_SSLScratch", "n=nnUNetTrainer"]
    _run(tmp_path, trainers=items, dry_run=True)
    said = [r.message.split()[0] for r in caplog.records if "stops early" in r.message]
    monkeypatch.setenv("nnssl_patience", "3")
    _run(tmp_path, trainers=items, dry_run=True)
    patient = [r.message.split()[0] for r in caplog.records if "stops early" in r.message][len(said) :]
    assert (said, patient) == (["p"], ["p", "s"])
    caplog.clear()
    _run(tmp_path, trainers=items, cases=[2, 7], test="70/10/20", dry_run=True)
    assert "stops early" not in caplog.text


def test_benchmark__dry_run_writes_nothing(tmp_path: Path, ran: list[Training], monkeypatch: pytest.MonkeyPatch,
                                           caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    monkeypatch.setenv("nnssl_num_epochs", "3")
    with caplog.at_level(logging.INFO):
        assert _run(tmp_path, trainers=["b=nnUNetTrainer", "nnUNetTrainer"], dry_run=True) is None
    out = tmp_path / "out"
    line = (f"nnUNet_preprocessed={out}/nnUNet_preprocessed nnUNet_results={out}/nnUNet_results/b nnssl_num_epochs=3 "
            "nnUNetv2_train 17 3d_fullres 0 -tr nnUNetTrainer -p nnUNetPlans -device cpu")  # fmt: skip
    assert line in caplog.text and "8 of 8 trainings are left" in caplog.text
    assert not out.exists() and ran == []


@pytest.mark.quick
def test_benchmark__collect_trains_nothing(
    tmp_path: Path, ran: list[Training], caplog: pytest.LogCaptureFixture
) -> None:
    assert _run(tmp_path, collect_only=True).scores == {} and "nothing is finished" in caplog.text
    assert not (tmp_path / "out").exists()
    _run(tmp_path, trainers=METHODS[:1])
    del ran[:]
    assert len(_run(tmp_path, collect_only=True).scores) == 4 and ran == []


def test_benchmark__another_tolerance_scores_again(tmp_path: Path, ran: list[Training]) -> None:
    first = _run(tmp_path, seeds=1)
    later = _run(tmp_path, seeds=1, tolerance=["spleen=3"])
    assert first.scores["base", 2, 0][1, 0, 1] < 1 == later.scores["base", 2, 0][1, 0, 1]


def test_benchmark__a_failed_method_does_not_stop_the_others(
    tmp_path: Path, ran: list[Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(task: Training) -> None:
        if task.method.name == "base":
            task.log.parent.mkdir(exist_ok=True)
            task.log.write_text("boom")
            raise TaskFailed(task, 1)
        pretend(task)

    monkeypatch.setattr(workflow, "run_task", run)
    with pytest.raises(UserError, match=r"base, 2 cases, seed 0 .* exit code 1(.|\n)*boom"):
        _run(tmp_path)
    assert "| good | " in (tmp_path / "out" / "results" / "results.md").read_text()


def test_benchmark__test_set_of_a_fold(tmp_path: Path, ran: list[Training]) -> None:
    splits = [{"train": ["case_1", "case_2", "case_3"], "val": ["case_0"]}]
    (tmp_path / "preprocessed" / DATASET / "splits_final.json").write_text(json.dumps(splits))
    results = _run(tmp_path, cases=[1, 3], test="fold_0")
    assert results.cases == ["case_0"] and set(ran[-1].fold.train) == {"case_1", "case_2", "case_3"}
    own = tmp_path / "out" / "nnUNet_preprocessed" / DATASET / "splits_final.json"
    assert not own.is_symlink() and len(json.loads(own.read_text())) == 4
    _run(tmp_path, cases=[1, 3])  # and keeps it


def test_benchmark__settings_must_not_change(
    tmp_path: Path, ran: list[Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnssl_num_epochs", "3")
    _run(tmp_path, seeds=1)
    monkeypatch.setenv("nnssl_num_epochs", "4")
    with pytest.raises(UserError, match=r"of base with other settings: nnssl_num_epochs \(was 3, is 4\); set them"):
        _run(tmp_path, seeds=1)
    _run(tmp_path, seeds=1, collect_only=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cases": [9]}, "-cases takes numbers from 1 to 8"),
        ({"part_id": 1}, "-part_id counts from 0 to 0"),
        ({"seeds": 0}, "-seeds takes a number from 1"),
        ({"baseline": "x"}, "-baseline x .* base, good"),
        ({"trainers": ["nnUNetTrainer_Nobody"]}, "nnU-Net finds no trainer nnUNetTrainer_Nobody"),
        ({"trainers": ["nnUNetTrainer"] * 2}, "-tr holds nnUNetTrainer twice"),
        ({"trainers": ["a=nnUNetTrainer,,random"]}, "nnUNetTrainer starts from no pretraining"),
        ({"trainers": ["a=nnUNetTrainer,,,,"]}, "-tr cannot read"),
        ({"plans": "others"}, "no plans others in"),
        ({"configuration": "3d_lowres"}, "has no configuration 3d_lowres; take one of 3d_fullres"),
        ({"test": "fold_0"}, "no splits_final.json"),
        ({"test": "labelsTs"}, "no test cases with labels"),
        ({"test": "some"}, "-test takes"),
        ({"dataset": 99}, "no dataset 99"),
    ],
)
def test_benchmark__mistakes(tmp_path: Path, ran: list[Training], options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        _run(tmp_path, **options)
    assert not (tmp_path / "out").exists() and ran == []


def test_benchmark__another_test_set_needs_another_folder(tmp_path: Path, ran: list[Training]) -> None:
    _run(tmp_path, seeds=1)
    with pytest.raises(UserError, match="another test"):
        _run(tmp_path, seeds=1, test="30")


def test_task__goes_on_where_it_was_cut_off(tmp_path: Path, ran: list[Training]) -> None:
    _run(tmp_path, seeds=1)
    task = ran[0]
    assert task.state() == "finished" and task.left()[-1] == "cpu"
    (task.predictions / "summary.json").write_text("{")  # cut off while it was written
    assert task.state() == "trained" and task.left()[-1] == "--val"
    os.replace(task.folder / "checkpoint_final.pth", task.folder / "checkpoint_best.pth")
    assert task.state() == "begun" and task.left()[-1] == "--c"
    (task.folder / "checkpoint_best.pth").unlink()
    assert task.state() == "missing" and task.left()[-1] == "cpu"


def test_task__unfinished_without_a_test_case(tmp_path: Path, ran: list[Training]) -> None:
    _run(tmp_path, seeds=1)
    file = ran[0].predictions / "summary.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({"metric_per_case": content["metric_per_case"][1:]}))
    assert ran[0].state() == "trained"


def test_benchmark__prediction_elsewhere_is_one_sentence(
    tmp_path: Path, ran: list[Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(task: Training) -> None:
        pretend(task)
        write_labels(task.predictions / f"{task.workspace.test.cases[0]}.nii.gz", cube()[1:])

    monkeypatch.setattr(workflow, "run_task", run)
    with pytest.raises(UserError, match="resample the prediction"):
        _run(tmp_path)


def test_benchmark__not_into_the_users_own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folders have nnU-Net's names: splits and plans of the user would be replaced."""
    folder = make_dataset(tmp_path, monkeypatch)
    folder.parent.rename(tmp_path / "nnUNet_preprocessed")
    monkeypatch.setenv("nnUNet_preprocessed", str(tmp_path / "nnUNet_preprocessed"))
    before = tree(tmp_path)
    with pytest.raises(UserError, match="another folder with -o"):
        nnssl.benchmark(17, ["nnUNetTrainer"], tmp_path, test="20", device="cpu")
    assert tree(tmp_path) == before
