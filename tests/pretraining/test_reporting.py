from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from nnssl.checkpoints.files import LATEST
from nnssl.core.errors import UserError
from nnssl.pretraining import reporting
from nnssl.pretraining.folder import Stored
from nnssl.pretraining.loop import Pretraining
from nnssl.pretraining.metrics import read_rows
from nnssl.pretraining.reporting import check_trackers, open_trackers
from tests.runs import CPU, make_setup


class FakeRun:
    def __init__(self, asked: dict[str, Any], step: int) -> None:
        self.asked, self.step = asked, step
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.exit_code: int | None = None
        self.settings: dict[str, Any] = {}
        self.config = self

    def update(self, settings: dict[str, Any], allow_val_change: bool) -> None:
        self.settings.update(settings)

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


class FakeWandb(ModuleType):
    """W&B as far as it is used; leaves the folders that the real one does."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None, origin="made up")
        self.runs: list[FakeRun] = []
        self.step, self.refuses = 0, False

    def init(self, **asked: Any) -> FakeRun:
        if self.refuses:
            raise self.Error("api_key not configured\nmore")
        latest = Path(asked["dir"]) / "wandb" / "latest-run"
        latest.mkdir(parents=True, exist_ok=True)
        (latest / f"run-{asked['id'] or 'abc123'}.wandb").touch()
        self.runs.append(FakeRun(asked, self.step))
        return self.runs[-1]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    for name in ("nnssl_tensorboard", "nnUNet_wandb_enabled", "nnUNet_wandb_project", "nnUNet_wandb_mode"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setenv("nnUNet_wandb_enabled", "1")
    return module


def test_open_trackers__none_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = make_setup(tmp_path)
    assert open_trackers(setup, 0) == []
    for value in ("0", "False", "false", ""):
        monkeypatch.setenv("nnUNet_wandb_enabled", value)
        monkeypatch.setenv("nnssl_tensorboard", value)
        assert open_trackers(setup, 0) == []


@pytest.mark.parametrize(("variable", "fix"), [
    ("nnssl_tensorboard", r"nnssl\[tensorboard\]"), ("nnUNet_wandb_enabled", "pip install wandb")
])  # fmt: skip
def test_check_trackers__what_is_not_installed_or_misspelt_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, fix: str
) -> None:
    monkeypatch.setattr(reporting, "_installed", lambda package: False)
    check_trackers()
    monkeypatch.setenv(variable, "1")
    with pytest.raises(UserError, match=fix):
        check_trackers()
    monkeypatch.setenv(variable, "yes")
    with pytest.raises(UserError, match=f"{variable} is 0 or 1, not 'yes'"):
        check_trackers()


def test_check_trackers__a_folder_of_the_package_s_name_is_not_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "nnssl_test_tracker"
    (tmp_path / name).mkdir()  # as W&B leaves ./wandb, which Python takes for a package without a file
    monkeypatch.syspath_prepend(tmp_path)
    assert not reporting._installed(name)
    (tmp_path / name / "__init__.py").touch()
    importlib.invalidate_caches()
    assert reporting._installed(name)


def test_wandb__a_run_is_logged_by_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wandb: FakeWandb) -> None:
    setup = make_setup(tmp_path)
    (setup.folder / "wandb" / "of-an-earlier-run").mkdir(parents=True)
    Pretraining(setup, CPU).run()
    (run,) = wandb.runs
    asked = {"project": "nnunet", "id": None, "mode": "online", "resume": "never", "dir": str(setup.folder)}
    assert asked.items() <= run.asked.items()
    assert run.settings["method"] == "vox2vec" and run.settings["options"]["batch_size"] == 2
    rows = read_rows(setup.folder / "metrics.jsonl")
    assert [step for step, _ in run.logged] == [1, 2]
    assert [values["loss"] for _, values in run.logged] == [row["loss"] for row in rows]
    assert {"effective_rank", "total_device_hours"} <= run.logged[0][1].keys()
    assert not {"device", "energy_kwh"} & run.logged[0][1].keys()  # a word, and nothing
    assert run.exit_code == 0 and not (setup.folder / "wandb" / "of-an-earlier-run").exists()


def test_wandb__a_continued_run_goes_on_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wandb: FakeWandb
) -> None:
    monkeypatch.setenv("nnUNet_wandb_project", "mine")
    monkeypatch.setenv("nnUNet_wandb_mode", "offline")
    setup = make_setup(tmp_path, num_epochs=3, save_every_epochs=1)
    first = Pretraining(setup, CPU)

    def killed(epoch: int) -> bool:
        if epoch == 3:  # before its row
            raise RuntimeError("killed")
        return epoch == 1

    monkeypatch.setattr(first, "_saves", killed)
    with pytest.raises(RuntimeError, match="killed"):
        first.run()
    assert wandb.runs[0].exit_code == 1 and [step for step, _ in wandb.runs[0].logged] == [1, 2]
    wandb.step = 3  # W&B's next
    Pretraining(replace(setup, resume=Stored(setup.folder / LATEST)), CPU).run()
    run = wandb.runs[1]
    assert run.asked["id"] == "abc123" and run.asked["resume"] == "allow" and run.asked["project"] == "mine"
    assert run.asked["mode"] == "offline" and [step for step, _ in run.logged] == [3]


def test_wandb__an_interruption_is_no_failure_and_refusals_name_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wandb: FakeWandb
) -> None:
    run = Pretraining(make_setup(tmp_path), CPU)
    monkeypatch.setattr(run, "_told_to_stop", lambda: True)
    with pytest.raises(Exception, match="--c"):
        run.run()
    assert wandb.runs[0].exit_code == 0
    wandb.refuses = True
    with pytest.raises(UserError, match=r"api_key not configured; log in with wandb login, or set .*=offline"):
        open_trackers(run.setup, 0)


def test_tensorboard__the_rows_can_be_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("nnssl_tensorboard", "1")
    setup = make_setup(tmp_path, save_every_epochs=1)
    Pretraining(setup, CPU).run()
    # continued after its first epoch: the second one's values are replaced
    second = open_trackers(setup, 1)[0]
    second.log({"epoch": 2, "loss": 7.0, "device": "cpu", "energy_kwh": None})
    second.close(False)
    read = accumulator.EventAccumulator(str(setup.folder / "tensorboard"))
    read.Reload()
    losses = [(event.step, event.value) for event in read.Scalars("loss")]
    rows = read_rows(setup.folder / "metrics.jsonl")
    assert losses == [(1, pytest.approx(rows[0]["loss"])), (2, 7.0)]
    assert {"effective_rank", "samples_per_second"} <= set(read.Tags()["scalars"])
