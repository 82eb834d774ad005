"""What the loop does with an online probe; the probe itself is tested in test_probe*.py."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nnssl.checkpoints.files import BEST, FINAL, LATEST, load_checkpoint
from nnssl.core.signals import Interrupted
from nnssl.methods.base import Method
from nnssl.methods.vox2vec.method import Vox2vec
from nnssl.pretraining import loop as module
from nnssl.pretraining.folder import Stored
from nnssl.pretraining.loop import Pretraining
from nnssl.pretraining.metrics import epoch_line, read_rows
from nnssl.pretraining.setup import Setup
from tests.runs import CPU, make_setup

DICE = {1: 0.25, 2: 0.75, 4: 0.5}  # by epoch; none is due after the third


class FakeProbe:
    """Draws from the global generator, which must not matter, and keeps what it is told."""

    def __init__(self, setup: Setup, method: Method, device: torch.device, precision: torch.dtype) -> None:
        assert device == CPU and precision == torch.float32
        self.method, self.seconds, self.improved = method, 0.0, False
        self.steps: list[int] = []
        self.best = -1.0

    def after_step(self, step: int) -> None:
        torch.rand(3)
        self.seconds += 0.001
        self.steps.append(step)

    def finish_epoch(self, epoch: int) -> dict[str, float]:
        self.seconds += 0.001
        if epoch not in DICE:
            self.improved = False
            return {}
        self.improved, self.best = DICE[epoch] > self.best, max(self.best, DICE[epoch])
        return {"probe_linear_dice": DICE[epoch], "probe_nonlinear_dice": DICE[epoch] / 2}

    def take_seconds(self) -> float:
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def state(self) -> dict[str, Any]:
        return {"steps": torch.tensor(self.steps), "best": self.best}

    def load_state(self, state: dict[str, Any]) -> None:
        self.steps, self.best = state["steps"].tolist(), state["best"]


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setattr(module, "OnlineProbe", FakeProbe)


def _probed(root: Path) -> Setup:
    setup = make_setup(root, num_epochs=4)
    named = SimpleNamespace(train=[], held_out=[], folder=SimpleNamespace(name="Dataset017_Labelled"))
    return replace(setup, probe=named)  # type: ignore[arg-type]


def test_run__a_probe_gets_every_step_and_changes_no_weight(tmp_path: Path) -> None:
    setup, plain = _probed(tmp_path / "probed"), make_setup(tmp_path / "plain", num_epochs=4)
    for s in (setup, plain):
        Pretraining(s, CPU).run()
    ends = [load_checkpoint(s.folder / FINAL) for s in (setup, plain)]
    assert all(torch.equal(v, ends[1]["method_state"][k]) for k, v in ends[0]["method_state"].items())
    assert ends[0]["probe_state"]["steps"].tolist() == list(range(12)) and ends[1]["probe_state"] is None
    rows, others = (read_rows(s.folder / "metrics.jsonl") for s in (setup, plain))
    assert [r.get("probe_linear_dice") for r in rows] == [0.25, 0.75, None, 0.5]
    # the pretraining's own figures are the same
    for key in ("loss", "val_loss", "effective_rank", "alignment"):
        assert [r[key] for r in rows] == [r[key] for r in others]
    assert all(0.004 / r["wall_seconds"] == pytest.approx(r["probe_share"], rel=0.05) for r in rows)
    assert not any("probe" in key for key in others[0]) and not (plain.folder / BEST).exists()
    assert "probe 0.250 / 0.125 Dice  probe-time" in epoch_line(rows[0], 4)
    assert "Dice" not in epoch_line(rows[2], 4) and "probe" not in epoch_line(others[0], 4)


def test_run__the_best_checkpoint_is_that_of_the_best_dice(tmp_path: Path) -> None:
    setup = _probed(tmp_path)
    Pretraining(setup, CPU).run()
    best = load_checkpoint(setup.folder / BEST)
    assert best["epoch"] == 2 and best["step"] == 6 and best["probe_state"]["best"] == 0.75
    summary = json.loads((setup.folder / "summary.json").read_text())
    assert summary["best_probe"] == {"linear": {"dice": 0.75, "epoch": 2}, "nonlinear": {"dice": 0.375, "epoch": 2}}


def test_run__an_interrupted_probe_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = _probed(tmp_path)
    after_step = Vox2vec.after_step

    def stop(self: Vox2vec, step: int) -> None:
        after_step(self, step)
        if step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Vox2vec, "after_step", stop)
    with pytest.raises(Interrupted):
        Pretraining(setup, CPU).run()
    monkeypatch.setattr(Vox2vec, "after_step", after_step)
    run = Pretraining(replace(setup, resume=Stored(setup.folder / LATEST)), CPU)
    assert run.probe is not None and run.probe.state()["best"] == 0.75
    run.run()
    assert load_checkpoint(setup.folder / FINAL)["probe_state"]["steps"].tolist() == list(range(12))
    assert load_checkpoint(setup.folder / BEST)["epoch"] == 2
    rows = read_rows(setup.folder / "metrics.jsonl")
    assert 0.004 / rows[2]["wall_seconds"] == pytest.approx(rows[2]["probe_share"], rel=0.05)  # of both parts
