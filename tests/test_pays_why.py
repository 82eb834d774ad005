"""What docs/results.md says of the reasons: `benchmarks/pays_why.py` and `benchmarks/first_steps.py`."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from nnssl.finetuning.base_trainer import RateByEpoch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def _module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return __import__(name)


def _finetuning(home: Path, name: str, epochs: int) -> Path:
    fold = home / "nnUNet_results" / name / "Dataset017_H" / "trainer__plans__3d_fullres" / "fold_2"
    (fold / "validation").mkdir(parents=True)
    lines = [f"train_loss -0.{e}\nPseudo dice [np.float32(0.{e}), np.float32(nan)] \n" for e in range(1, epochs + 1)]
    (fold / "training_log_1.txt").write_text("".join(lines))
    return fold


def test_why__trainings_that_are_tested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = _module("pays_why", monkeypatch)
    _finetuning(tmp_path, "begun", 1)
    mean = {"1": {"Dice": 0.25}, "2": {"Dice": 0.5}}
    (_finetuning(tmp_path, "mae", 2) / "validation" / "summary.json").write_text(json.dumps({"mean": mean}))
    assert list(module.trainings(tmp_path)) == [
        ["mae", "2", "40", "-0.1", "0.1", "nan", "", ""],
        ["mae", "2", "80", "-0.2", "0.2", "nan", "0.2500", "0.5000"],
    ]


def test_why__first_and_last_epoch_of_a_pretraining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = _module("pays_why", monkeypatch)
    run = tmp_path / "pretrained" / "seed_1" / "Dataset502_H" / "nnssl_lapn__plans__3d_fullres" / "fold_all"
    run.mkdir(parents=True)
    epochs = [{"step": 7 * e, "loss": e, "val_loss": None, "effective_rank": 2.5} for e in (1, 2, 3)]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, epochs)))
    assert list(module.pretrainings(tmp_path)) == [
        ["lapn", "1", "7", "1.0000", "", "", "2.5000"],
        ["lapn", "1", "21", "3.0000", "", "", "2.5000"],
    ]


@pytest.mark.parametrize(("change", "factor"), [("none", 1.0), ("small", 1.0), ("against_1+rate_10", 10.0)])
def test_first_steps__change_the_outputs_alone(monkeypatch: pytest.MonkeyPatch, change: str, factor: float) -> None:
    module = _module("first_steps", monkeypatch)
    network: Any = nn.Conv3d(2, 4, 1)
    network.decoder = nn.Module()
    network.decoder.seg_layers = nn.ModuleList([nn.Conv3d(4, 3, 1)])
    layer = network.decoder.seg_layers[0]
    before, others = layer.weight.detach().clone(), network.weight.detach().clone()
    scheduler = RateByEpoch(torch.optim.SGD(network.parameters()), lambda _: 0.25)
    trainer = SimpleNamespace(plain_network=network, initial_lr=0.5, weight_decay=0.0, lr_scheduler=scheduler)
    assert module.change_outputs(trainer, change.split("+")) == factor
    expected = before * (module.SMALL if change == "small" else 1)
    if change.startswith("against"):
        expected[1] = -expected[1].abs()
    assert torch.equal(layer.weight, expected) and torch.equal(network.weight, others)
    trainer.lr_scheduler.step(0)
    first, second = trainer.optimizer.param_groups
    assert first["lr"] == second["lr"] == 0.25 and {id(p) for p in second["params"]} == set(map(id, layer.parameters()))
