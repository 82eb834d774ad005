from __future__ import annotations

from math import prod
from pathlib import Path

import pytest
import torch

from nnssl.methods.registry import method_names
from nnssl.networks.pyramid import FeaturePyramid
from nnssl.pretraining.loop import Pretraining
from nnssl.pretraining.probe import StepCost, evaluation_interval, training_interval, windows_within
from tests.runs import CPU, make_setup


@pytest.mark.parametrize("method", method_names())
def test_step_cost__counts_the_crops_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    setup = make_setup(tmp_path, method, num_epochs=1, steps_per_epoch=1, val_steps_per_epoch=0)
    run = Pretraining(setup, CPU)
    cost, counted = StepCost(run.method), []
    monkeypatch.setattr(run.method, "after_step", lambda step: counted.append(cost.units()))
    run.run()
    (units,) = counted
    crops = {"vox2vec": 4, "sam": 4, "mae": 2, "lapn": 2 + 2 / 3, "alice": 4 + 4 / 3, "pimpic": 8}
    assert units > 0 and not any(m._forward_pre_hooks for m in run.method.modules())
    if method in crops:
        assert units == pytest.approx(3 * crops[method])


def test_step_cost__a_network_that_is_not_called_counts_by_its_batch(tmp_path: Path) -> None:
    setup = make_setup(tmp_path, "mae", mask_ratio=0.75)
    method = setup.build_method()
    method.backbone.encodes_blocks = True
    method.step = lambda batch: None  # type: ignore[method-assign, assignment, return-value]
    cost = StepCost(method)
    method({"crops": torch.zeros(2, 1, 1, 8, 16, 16), "mask_seeds": torch.zeros(2, 1)})
    assert cost.units() == pytest.approx(3 * 2 / 4)


def test_step_cost__without_gradient_a_crop_is_one_unit(tmp_path: Path) -> None:
    setup = make_setup(tmp_path)
    method = setup.build_method()
    cost = StepCost(method)
    assert isinstance(method.backbone, FeaturePyramid)
    with torch.no_grad():
        method.backbone(torch.zeros(3, 1, 8, 16, 16))
    assert cost.units() == 3 * prod((8, 16, 16)) / prod((8, 16, 16))


def test_intervals__keep_the_probe_below_a_tenth_of_the_run() -> None:
    for units in (1.0, 6.0, 12.0, 60.0):
        for epochs, steps, windows in ((20, 20, 200), (1000, 100, 800), (10, 5, 4)):
            interval = evaluation_interval(units, steps, epochs, windows)
            assert 1 <= interval <= epochs and epochs / interval <= 20
            used = min(windows, windows_within(units, interval * steps)) * (epochs // interval)
            total = units * epochs * steps
            assert (1.5 * used + 4 * epochs * steps / training_interval(units)) / total < 0.1


def test_training_interval__never_less_than_a_step() -> None:
    assert training_interval(1000.0) == 1 and training_interval(12.0) == 9
