from __future__ import annotations

import logging
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nnssl.checkpoints.files import LATEST
from nnssl.methods.vox2vec.method import Vox2vecConfig
from nnssl.pretraining import life_signs
from nnssl.pretraining.cost import EnergyMeter, EpochCost
from nnssl.pretraining.folder import Stored
from nnssl.pretraining.life_signs import LifeSigns, Pace, about
from nnssl.pretraining.loop import Pretraining
from nnssl.pretraining.metrics import Row, Watch
from tests.runs import CPU, make_setup

CONFIG = Vox2vecConfig(num_epochs=4, steps_per_epoch=50, batch_size=2)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What the package says, in this process."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    caplog.set_level(logging.INFO, "nnssl")
    return caplog


class Clock:
    """Goes on when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def _signs(tmp_path: Path, clock: Clock, val_steps: int = 5) -> LifeSigns:
    watch = Watch(tmp_path, CPU)
    return LifeSigns(CONFIG, Pace(CONFIG, val_steps), EpochCost(EnergyMeter(CPU)), watch, CPU, clock)


def _steps(signs: LifeSigns, clock: Clock, first: int, last: int, seconds: float) -> None:
    for step in range(first, last):
        clock.now += seconds
        signs.watch.means["train"].add(["loss"], [float(step)])
        signs.step(step + 1)


def test_life_signs__first_step_then_the_time_then_a_line_a_minute(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    signs = _signs(tmp_path, clock)
    with signs.epoch(0, 0):
        _steps(signs, clock, 0, 1, 40.0)
        assert said.messages[0].startswith("first step") and len(said.messages) == 1
        _steps(signs, clock, 1, 2, 30.0)  # the warm-up counts for nothing
        _steps(signs, clock, 2, 40, 4.0)
    time, *minutes = said.messages[1:]
    # after five more steps 193 are left, and four validations of five steps that count as these
    assert time == f"4 s a step: about {about(4.0 * (193 + 20))} for the 193 steps left"
    # it was said after the 7th step; a minute is 15 steps
    assert [re.findall(r"step (\d+)/50", line) for line in minutes] == [["22"], ["37"]]
    assert "epoch 1/4" in minutes[0] and "samples/s" in minutes[0] and "data-wait" in minutes[0]
    assert f"loss {sum(range(22)) / 22:.4f}" in minutes[0] and minutes[0].endswith(f"{about(4.0 * 198)} left")


def test_life_signs__an_epochs_end_is_timed_and_long_validations_speak(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    signs = _signs(tmp_path, clock)
    with signs.epoch(0, 0):
        _steps(signs, clock, 0, 50, 1.0)
    said.clear()
    for step in range(5):
        clock.now += 20.0
        signs.validated(step + 1)
    # 50 s went by since the steps' last line
    assert said.messages == ["epoch 1/4  validation 1/5", "epoch 1/4  validation 4/5"]
    with signs.epoch(1, 50):
        assert signs.pace.left(50) == pytest.approx(150 * 1.0 + 3 * 100.0)


def test_life_signs__a_terminal_has_the_bar(
    tmp_path: Path, said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    signs = _signs(tmp_path, clock)
    with signs.epoch(0, 0):
        _steps(signs, clock, 0, 20, 70.0)
    assert not [line for line in said.messages if "step 2" in line] and len(said.messages) == 2


def test_life_signs__a_step_that_takes_long_and_a_run_that_is_short(
    tmp_path: Path, said: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    signs = _signs(tmp_path, clock)
    with signs.epoch(3, 150):  # the last epoch
        _steps(signs, clock, 150, 154, 3600.0)
        assert said.messages[-1].startswith("3600 s a step: about 2 d 3 h for the 46 steps left")
    said.clear()
    quick = _signs(tmp_path, clock)
    with quick.epoch(3, 150):
        _steps(quick, clock, 150, 160, 0.01)
    assert len(said.messages) == 1  # nothing is known after so short a time


def test_pace__of_earlier_epochs() -> None:
    def row(epoch: int, seconds: float, wall: float) -> Row:
        return {"epoch": epoch, "seconds": seconds, "wall_seconds": wall}

    assert "after the first steps" in Pace(CONFIG, 5).before(0)
    assert "after the first steps" in Pace(CONFIG, 5, [{"epoch": 1, "seconds": 50.0}]).before(50)  # an earlier version
    pace = Pace(CONFIG, 5, [row(1, 500.0, 700.0), row(2, 100.0, 120.0), row(3, 100.0, 120.0)])
    assert pace.left(160) == 40 * 2.0 + 20.0
    assert pace.before(160) == "about 2 min for the 40 steps left, by the last 3 epochs"
    assert Pace(CONFIG, 5, [row(1, 100.0, 120.0)]).before(160).endswith("by the last epoch")


@pytest.mark.parametrize(("seconds", "text"), [
    (0.2, "1 s"), (99, "99 s"), (150, "2 min"), (3599, "1 h 0 min"), (7800, "2 h 10 min"), (180000, "2 d 2 h"),
])  # fmt: skip
def test_about(seconds: float, text: str) -> None:
    assert about(seconds) == text


def _said_by_run(run: Pretraining, said: pytest.LogCaptureFixture) -> list[str]:
    said.clear()
    run.run()
    return list(said.messages)


def test_run__announces_itself_once(
    tmp_path: Path, said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life_signs, "SILENCE_S", 0.0)
    setup = make_setup(tmp_path, save_every_epochs=1)
    run = Pretraining(setup, CPU)
    total = sum(p.numel() for p in run.method.parameters())
    backbone = sum(p.numel() for p in run.method.backbone.parameters())
    lines = _said_by_run(run, said)
    told = {line.split()[0]: line for line in lines[:9]}
    assert list(told) == ["method", "network", "parameters", "input", "device", "volumes", "memory", "time", "output"]
    assert len({re.match(r"\w+ +", line)[0].__len__() for line in told.values()}) == 1  # type: ignore[index]
    assert "2 epochs of 3 steps" in told["method"] and "goes on" not in told["method"]
    assert "FPN3d, decoder maps at 3 levels of 4, 8, 16 channels" in told["network"]
    assert f"{total:,} in all, {backbone:,} of" in told["parameters"] and total > backbone > 0
    assert "patch 8 x 16 x 16 voxels of 2 x 1 x 1 mm, batch 2" in told["input"]
    assert "float32 on" in told["device"] and "5 for the training, 1 held out" in told["volumes"]
    assert float(re.findall(r"([\d.]+) GiB", told["memory"])[0]) > 0.05
    assert "after the first steps" in told["time"] and str(setup.folder) in told["output"]
    assert lines[9].startswith("first step") and "waiting for data" in lines[9]
    assert [line.split("  ")[1] for line in lines[10:14]][:3] == ["step 2/3", "step 3/3", "validation 1/1"]
    # the loss is that of the steps whose values are there: it waits for none
    assert [line for line in lines if "step 2/3" in line and "loss" in line]

    again = _said_by_run(Pretraining(replace(setup, config=replace(setup.config, num_epochs=4),
                                             resume=Stored(setup.folder / LATEST)), CPU), said)  # fmt: skip
    assert "goes on after step 6" in again[0]
    assert re.search(r"time +about \d+ s for the 6 steps left, by the last 2 epochs", "\n".join(again))


def test_run__waits_for_no_value_to_say_it(
    tmp_path: Path, said: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many values are read from the device with a line a step as without."""
    counts = []
    for silence in (0.0, 1e9):
        monkeypatch.setattr(life_signs, "SILENCE_S", silence)
        read = [0]
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "cpu", "__float__"):
                function = getattr(torch.Tensor, name)

                def counted(self: torch.Tensor, *a: Any, _f: Any = function, _r: list[int] = read, **k: Any) -> Any:
                    _r[0] += 1
                    return _f(self, *a, **k)

                patch.setattr(torch.Tensor, name, counted)
            (tmp_path / f"{silence}").mkdir()
            Pretraining(make_setup(tmp_path / f"{silence}"), CPU).run()
        counts.append(read[0])
    assert counts[0] == counts[1] > 0
    assert sum("step 2/3" in line for line in said.messages) == 2
