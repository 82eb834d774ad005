from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnssl.benchmarking.workflow import Task, TaskFailed
from nnssl.cli.demo import main
from nnssl.core.errors import UserError
from nnssl.demo import phantom as datasets
from nnssl.demo import run
from nnssl.demo.anatomy import LABELS
from nnssl.demo.phantom import Torso, make_torso
from nnssl.demo.run import run_demo
from nnssl.demo.steps import Folders, Step


@pytest.fixture(scope="module")
def torso() -> Torso:
    return make_torso(np.random.default_rng(0))


@pytest.fixture
def _no_long_runs(monkeypatch: pytest.MonkeyPatch, torso: Torso) -> None:
    """Two small datasets of one patient, and commands that leave what the evaluation would."""

    def run_task(step: Step) -> None:
        step.note(1.0, 0, anew=True)
        if step.key.startswith("predict"):
            assert step.product is not None
            step.product.mkdir(parents=True)
            for file in step.folders.truth.iterdir():
                sitk.WriteImage(sitk.ReadImage(str(file)), str(step.product / file.name))
        if step.key.startswith("evaluate"):
            metrics = {str(n): {"Dice": 0.25 if "random" in step.key else 0.75} for n in LABELS.values()}
            cases = [{"prediction_file": f.name, "metrics": metrics} for f in step.folders.truth.iterdir()]
            file = Path(step.command[2]) / "summary.json"
            file.write_text(json.dumps({"metric_per_case": cases, "mean": metrics}))

    monkeypatch.setattr(run, "run_task", run_task)
    monkeypatch.setattr(datasets, "make_torso", lambda _: torso)
    for name, number in {"_SCANS": 1, "_TRAINING": 1, "_VALIDATION": 1, "_TEST": 1}.items():
        monkeypatch.setattr(run, name, number)


@pytest.mark.usefixtures("_no_long_runs")
def test_run_demo__data_commands_and_report(tmp_path: Path) -> None:
    scores = run_demo(tmp_path / "demo", seeds=(0, 1))
    assert {(s.seed, s.backbone) for s in scores} == {(0, "vox2vec"), (0, "random"), (1, "vox2vec"), (1, "random")}
    folders = Folders(tmp_path / "demo")
    assert json.loads(folders.splits.read_text()) == [{"train": ["organs_000"], "val": ["organs_001"]}]
    assert (folders.home / "comparison.png").stat().st_size > 10_000
    report = (folders.home / "report.md").read_text()
    assert "+0.500 ± 0.000" in report and "seeds 0, 1" in report and "nnUNetv2_predict" in report
    assert "+.50 ± .00 on 1 test scans in 2 seeds, ahead on 2 of 2." in report


@pytest.mark.usefixtures("_no_long_runs")
def test_run_demo__an_unfinished_demo_has_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_demo(tmp_path)
    assert (tmp_path / "report.md").is_file()

    def fail(step: Step) -> None:
        raise UserError("no")

    monkeypatch.setattr(run, "run_task", fail)
    with pytest.raises(UserError, match="no"):
        run_demo(tmp_path, seeds=(0, 1))
    assert not (tmp_path / "report.md").exists() and not (tmp_path / "comparison.png").exists()


@pytest.mark.usefixtures("_no_long_runs")
def test_run_demo__goes_on_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pretend = run.run_task

    def fail(step: Task) -> None:
        if step.key == "transfer_vox2vec":
            step.log.parent.mkdir()
            step.log.write_text("too few cases")
            raise TaskFailed(step, 7)
        pretend(step)

    monkeypatch.setattr(run, "run_task", fail)
    with pytest.raises(UserError, match=r"(?s)nnssl_transfer .*exit code 7.*to continue.*too few cases"):
        run_demo(tmp_path / "demo")
    monkeypatch.setattr(run, "run_task", pretend)
    with caplog.at_level("INFO"):
        run_demo(tmp_path / "demo")
    assert sum("done before" in message for message in caplog.messages) == 2  # plan and pretraining


@pytest.mark.parametrize(
    ("seeds", "method", "words"),
    [((), "vox2vec", "different seeds"), ((0, 0), "vox2vec", "seeds"), ((0,), "vox3vec", "choose one of")],
)
def test_run_demo__mistakes_leave_nothing(tmp_path: Path, seeds: tuple[int, ...], method: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        run_demo(tmp_path / "demo", method, seeds)
    assert not list(tmp_path.iterdir())


def test_main__says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").write_text(str(np.pi))
    with pytest.raises(SystemExit) as exit_:
        main(["-o", str(tmp_path)])
    assert exit_.value.code == 1
    assert capsys.readouterr().err.startswith("error: ") and [f.name for f in tmp_path.iterdir()] == ["mine"]
