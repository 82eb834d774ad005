from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nnssl.checkpoints.files import FINAL, LATEST, load_checkpoint
from nnssl.core.signals import Interrupted
from nnssl.methods.base import Method
from nnssl.methods.registry import method_names
from nnssl.networks.fpn_unet import FPN3d
from nnssl.networks.lapn_unet import LapnPyramid
from nnssl.networks.pyramid import FeaturePyramid
from nnssl.networks.swin import SwinPyramid
from nnssl.networks.vit import ViTPyramid
from nnssl.pretraining.launch import launch
from nnssl.pretraining.loop import Pretraining
from nnssl.pretraining.metrics import read_rows
from nnssl.pretraining.probe import OnlineProbe
from tests.pretraining.labelled import SIZE, add_labels, probed_setup
from tests.runs import CPU, resumed, same_content


@pytest.fixture(autouse=True)
def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")


@pytest.mark.parametrize("method", method_names())
def test_online_probe__every_method_is_measured_and_its_weights_are_those_of_a_run_without(
    tmp_path: Path, method: str
) -> None:
    setup = probed_setup(tmp_path, method, num_epochs=1, steps_per_epoch=2)
    Pretraining(setup, CPU).run()
    probed, rows = load_checkpoint(setup.folder / FINAL), read_rows(setup.folder / "metrics.jsonl")
    without = tmp_path / "without"
    without.mkdir()
    Pretraining(replace(setup, probe=None, folder=without), CPU).run()
    plain = load_checkpoint(without / FINAL)
    assert same_content(probed["method_state"], plain["method_state"])
    assert same_content(probed["optimiser_state"], plain["optimiser_state"])
    assert plain["probe_state"] is None and probed["probe_state"]["updates"] > 0
    for row, other in zip(rows, read_rows(without / "metrics.jsonl"), strict=True):
        assert row["loss"] == other["loss"] and row["val_loss"] == other["val_loss"]
        for head in ("linear", "nonlinear"):
            by_label = [row[f"probe_{head}_dice_{label}"] for label in ("box", "slab")]
            assert row[f"probe_{head}_dice"] == pytest.approx(np.mean(by_label)) and min(by_label) >= 0
    assert (setup.folder / "checkpoint_best.pth").is_file()


def test_online_probe__interrupted_and_resumed_ends_bitwise_as_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = probed_setup(tmp_path, steps_per_epoch=8)
    Pretraining(setup, CPU).run()
    whole, rows = load_checkpoint(setup.folder / FINAL), read_rows(setup.folder / "metrics.jsonl")
    for file in setup.folder.iterdir():
        file.unlink()
    run = Pretraining(setup, CPU)
    monkeypatch.setattr(run, "_told_to_stop", lambda: run.step == 9)
    with pytest.raises(Interrupted):
        run.run()
    resumed(setup, LATEST).run()
    again = load_checkpoint(setup.folder / FINAL)
    assert same_content(again["probe_state"], whole["probe_state"]) and same_content(
        again["method_state"], whole["method_state"]
    )
    for row, other in zip(rows, read_rows(setup.folder / "metrics.jsonl"), strict=True):
        assert {k: v for k, v in row.items() if "dice" in k} == {k: v for k, v in other.items() if "dice" in k}


@pytest.mark.slow
def test_online_probe__only_one_of_several_processes_probes_and_the_others_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    setup = probed_setup(tmp_path, batch_size=4, num_epochs=2, steps_per_epoch=2)
    without = tmp_path / "without"
    without.mkdir()
    launch(setup, "cpu", 2)
    launch(replace(setup, probe=None, folder=without), "cpu", 2)
    probed, plain = (load_checkpoint(folder / FINAL) for folder in (setup.folder, without))
    assert same_content(probed["method_state"], plain["method_state"])
    assert probed["probe_state"]["updates"] == 4 and plain["probe_state"] is None
    assert all("probe_linear_dice" in row for row in read_rows(setup.folder / "metrics.jsonl"))


def test_online_probe__its_error_ends_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    setup = probed_setup(tmp_path, batch_size=4, num_epochs=1, steps_per_epoch=2)
    assert setup.probe is not None
    for case in setup.probe.train:
        add_labels(setup.probe.folder.images, case, np.full(SIZE, 9, dtype=np.int16))
    with pytest.raises(SystemExit):
        launch(setup, "cpu", 2)
    assert "holds 9, which its dataset.json does not name" in (setup.folder / "pretraining_log.txt").read_text()


def _probe(tmp_path: Path, **options: Any) -> OnlineProbe:
    setup = probed_setup(tmp_path, **options)
    torch.manual_seed(0)
    return OnlineProbe(setup, setup.build_method(), CPU, torch.float32)


def _train(probe: OnlineProbe, steps: int) -> None:
    for step in range(steps):
        probe._train(step)


def test_online_probe__dice_rises_while_the_heads_learn_and_is_high_where_the_features_show_the_labels(
    tmp_path: Path,
) -> None:
    probe = _probe(tmp_path, num_epochs=10)
    _train(probe, 1)
    early = probe.finish_epoch(1)
    assert probe.improved
    for step in range(1, 40):
        probe._train(step)
    late = probe.finish_epoch(2)
    assert probe.improved
    for head in ("linear", "nonlinear"):
        assert late[f"probe_{head}_dice"] > max(early[f"probe_{head}_dice"] + 0.05, 0.6)
    again = probe.finish_epoch(3)
    assert again == late and not probe.improved  # nothing was learnt in between


def test_online_probe__features_that_say_nothing_are_worth_less(tmp_path: Path) -> None:
    probe = _probe(tmp_path)
    features = probe.features

    class Noise:
        strides = features.strides

        def __call__(self, image: Tensor) -> list[Tensor]:
            generator = torch.Generator().manual_seed(int(image.sum() * 1000) % 1000)
            return [torch.randn(level.shape, generator=generator) for level in features(image)]

    probe.features = Noise()  # type: ignore[assignment]
    _train(probe, 40)
    assert probe.finish_epoch(1)["probe_linear_dice"] < 0.4


def test_online_probe__leaves_modes_buffers_and_random_numbers_alone(tmp_path: Path) -> None:
    setup = probed_setup(tmp_path)
    method = setup.build_method().train()
    frozen = next(m for m in method.backbone.modules() if isinstance(m, torch.nn.BatchNorm3d))
    frozen.eval()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    modes = [m.training for m in method.modules()]
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    probe = OnlineProbe(setup, method, CPU, torch.float32)
    probe.after_step(0)
    assert probe.finish_epoch(1)
    assert torch.equal(torch.rand(4), expected)
    assert [m.training for m in method.modules()] == modes
    assert same_content(before, dict(method.state_dict()))
    assert all(p.grad is None for p in method.parameters())
    assert probe.take_seconds() > 0
    assert probe.take_seconds() == 0
    assert not any(m._forward_pre_hooks for m in method.modules())


def test_online_probe__state_is_plain_and_restores_everything(tmp_path: Path) -> None:
    probe = _probe(tmp_path)
    probe.after_step(0)
    scored = probe.finish_epoch(1)
    torch.save(probe.state(), tmp_path / "state.pth")
    other = OnlineProbe(probed_setup(tmp_path / "b"), probe_method(tmp_path / "c"), CPU, torch.float32)
    other.load_state(torch.load(tmp_path / "state.pth", weights_only=True))
    assert same_content(other.state()["heads"], probe.state()["heads"])
    assert other.interval == probe.interval
    other.features = probe.features
    assert other.finish_epoch(1) == scored and not other.improved


def probe_method(root: Path) -> Any:
    return probed_setup(root).build_method()


def _leaving_out() -> FeaturePyramid:
    backbone = FPN3d(1, 4, 3)
    backbone.leave_out_finer(1)
    return backbone


def _vit() -> FeaturePyramid:
    pytest.importorskip("monai")
    return ViTPyramid(1, (16, 32, 32), 2, hidden_size=24, mlp_dim=24, num_heads=2, num_layers=4)


def _swin() -> FeaturePyramid:
    pytest.importorskip("monai")
    return SwinPyramid(1, 12, window_size=2, levels="decoder")


@pytest.mark.parametrize(("make", "patch"), [
    (_leaving_out, (16, 32, 32)), (_vit, (16, 32, 32)), (_swin, (32, 32, 64)),
    (lambda: LapnPyramid(1, (4, 6, 8), 1, 5), (16, 32, 32)),
])  # fmt: skip
def test_online_probe__networks_of_every_kind_of_pyramid(
    tmp_path: Path, make: Callable[[], FeaturePyramid], patch: tuple[int, int, int]
) -> None:
    setup = probed_setup(tmp_path, patch_size=patch)
    method = Method(make(), setup.config)
    probe = OnlineProbe(setup, method, CPU, torch.float32)
    probe.after_step(0)
    assert probe._updates == 4 and probe.finish_epoch(1).keys() > {"probe_linear_dice", "probe_nonlinear_dice"}


def test_online_probe__bf16_features_are_probed_in_float32(tmp_path: Path) -> None:
    setup = probed_setup(tmp_path)
    probe = OnlineProbe(setup, setup.build_method(), CPU, torch.bfloat16)
    probe.after_step(0)
    assert probe.finish_epoch(1)["probe_linear_dice"] >= 0
    assert all(p.dtype == torch.float32 for p in probe.heads.parameters())
