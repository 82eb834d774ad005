from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from nnssl.checkpoints.files import FINAL, LATEST, load_checkpoint
from nnssl.core.errors import UserError
from nnssl.core.signals import Interrupted
from nnssl.methods.base import Batch, Method, StepOutput
from nnssl.methods.registry import get_method, method_names
from nnssl.methods.vox2vec.method import Vox2vec
from nnssl.pretraining.folder import Stored
from nnssl.pretraining.loop import Pretraining
from nnssl.pretraining.metrics import Row, read_rows
from nnssl.pretraining.reporting import Reporter
from tests.runs import CPU, make_setup, resumed, same_content


@pytest.fixture(autouse=True)
def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")


@pytest.mark.parametrize("method", method_names())
def test_run__every_method_writes_its_files_and_moves_its_weights(tmp_path: Path, method: str) -> None:
    setup = make_setup(tmp_path, method)
    run = Pretraining(setup, CPU)
    before = {k: v.clone() for k, v in run.method.backbone.named_parameters() if v.requires_grad}
    run.run()
    files = {LATEST, FINAL, "metrics.jsonl", "progress.png", "views.png", "summary.json"}
    if type(run.method).reconstruction is not Method.reconstruction:
        files.add("reconstruction.png")
    assert {f.name for f in setup.folder.iterdir()} == files
    assert all(not torch.equal(before[k], v) for k, v in run.method.backbone.named_parameters() if k in before)
    rows = read_rows(setup.folder / "metrics.jsonl")
    assert [r["epoch"] for r in rows] == [1, 2] and rows[-1]["step"] == 6
    needed = {"loss", "val_loss", "embedding_std", "val_embedding_std", "samples_per_second", "data_wait", "memory_gib"}
    assert needed <= rows[0].keys()
    assert rows[0]["embedding_std"] > 0


_BASELINES = {"simclr", "unet_mae", "volumefusion", "mae"}  # their state is what the papers' methods have too


@pytest.mark.parametrize(
    ("method", "stop_after"),
    [
        pytest.param("vox2vec", 1, marks=pytest.mark.slow),
        ("vox2vec", 3),
        *(pytest.param(name, 4, marks=[pytest.mark.slow] * (name in _BASELINES)) for name in method_names()),
    ],
)
def test_run__interrupted_and_resumed_ends_bitwise_as_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, stop_after: int
) -> None:
    whole = make_setup(tmp_path / "whole", method, schedule="cosine", warmup_steps=2)
    Pretraining(whole, CPU).run()

    parts = make_setup(tmp_path / "parts", method, schedule="cosine", warmup_steps=2)
    run = Pretraining(parts, CPU)
    method_class = get_method(method)
    after_step = method_class.after_step

    def stop(self: Method, step: int) -> None:
        after_step(self, step)
        if step + 1 == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(method_class, "after_step", stop)
    with pytest.raises(Interrupted, match="--c"):
        run.run()
    monkeypatch.undo()
    assert load_checkpoint(parts.folder / LATEST)["step"] == stop_after
    torch.manual_seed(1234)  # a new process has another state
    resumed(parts, LATEST).run()

    ends = [load_checkpoint(s.folder / FINAL) for s in (whole, parts)]
    for key in ("method_state", "optimiser_state", "step", "epoch"):
        assert same_content(ends[0][key], ends[1][key]), key
    rows = [read_rows(s.folder / "metrics.jsonl") for s in (whole, parts)]
    names = {"loss", "val_loss", "embedding_std", "gradient_norm", "learning_rate", "effective_rank", "health_rows"}
    for name in names | ({"alignment", "uniformity"} & rows[0][0].keys()):
        assert [r[name] for r in rows[0]] == [r[name] for r in rows[1]], name
    assert [r.keys() for r in rows[0]] == [r.keys() for r in rows[1]]
    assert [r["samples"] for r in rows[1]] == [6, 6]  # of an epoch's both parts
    assert rows[1][1]["total_device_hours"] == pytest.approx(sum(r["device_hours"] for r in rows[1]))


def test_run__a_signal_between_the_last_step_of_an_epoch_and_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = make_setup(tmp_path)
    epoch = Reporter.epoch

    def told(self: Reporter, row: Row) -> None:
        epoch(self, row)
        os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(Reporter, "epoch", told)
    with pytest.raises(Interrupted):
        Pretraining(setup, CPU).run()
    content = load_checkpoint(setup.folder / LATEST)
    assert (content["step"], content["epoch"]) == (3, 1)
    monkeypatch.undo()
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    resumed(setup, LATEST).run()
    assert [row["step"] for row in read_rows(setup.folder / "metrics.jsonl")] == [3, 6]


def test_run__signal_handlers_come_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    Pretraining(make_setup(tmp_path, num_epochs=1, steps_per_epoch=1), CPU).run()
    assert signal.getsignal(signal.SIGUSR1) is before


def test_run__a_loss_that_is_not_finite_names_step_cases_and_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = make_setup(tmp_path, save_every_epochs=1)
    step = Vox2vec.step
    calls = []

    def poisoned(self: Vox2vec, batch: Batch) -> StepOutput:
        calls.append(self.training)
        output = step(self, batch)
        return StepOutput(output.loss * torch.nan, output.terms, output.embeddings) if len(calls) == 6 else output

    monkeypatch.setattr(Vox2vec, "step", poisoned)  # calls: 3 training, 1 validation, 2 training
    with pytest.raises(UserError) as error:
        Pretraining(setup, CPU).run()
    assert "nan at step 4 (train)" in str(error.value) and "Dataset500_Test/case_" in str(error.value)
    assert str(setup.folder / LATEST) in str(error.value) and "learning_rate" in str(error.value)
    checkpoint = load_checkpoint(setup.folder / LATEST)
    assert checkpoint["epoch"] == 1
    assert all(v.isfinite().all() for v in checkpoint["method_state"].values())


def test_run__without_held_out_cases_there_is_no_validation(tmp_path: Path) -> None:
    setup = make_setup(tmp_path, held_out=0, num_epochs=1)
    Pretraining(setup, CPU).run()
    assert "val_loss" not in read_rows(setup.folder / "metrics.jsonl")[0]


def test_run__validation_leaves_the_training_alone(tmp_path: Path) -> None:
    setups = [make_setup(tmp_path / str(n), val_steps_per_epoch=n) for n in (0, 3)]
    for setup in setups:
        Pretraining(setup, CPU).run()
    states = [load_checkpoint(s.folder / FINAL)["method_state"] for s in setups]
    assert same_content(states[0], states[1])


def test_run__the_loss_goes_down(tmp_path: Path) -> None:
    setup = make_setup(tmp_path, num_epochs=4, steps_per_epoch=10, learning_rate=3e-3)
    Pretraining(setup, CPU).run()
    rows = read_rows(setup.folder / "metrics.jsonl")
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.3
    assert rows[-1]["val_loss"] < rows[0]["val_loss"]


def test_pretrained__weights_only_and_other_networks_are_refused(tmp_path: Path) -> None:
    first = make_setup(tmp_path / "first", num_epochs=1)
    Pretraining(first, CPU).run()
    setup = make_setup(tmp_path / "second", seed=5)
    object.__setattr__(setup, "pretrained", Stored(first.folder / FINAL))
    run = Pretraining(setup, CPU)
    stored = load_checkpoint(first.folder / FINAL)["method_state"]
    assert same_content(dict(run.method.state_dict()), stored) and run.step == 0
    wider = make_setup(tmp_path / "third")
    wider.plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["base_channels"] = 6
    object.__setattr__(wider, "pretrained", Stored(first.folder / FINAL))
    with pytest.raises(UserError, match=r"another network.*\(4, 1, 3, 3, 3\) in the checkpoint, \(6, 1, 3, 3, 3\)"):
        Pretraining(wider, CPU)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_run__a_damaged_volume_is_named_and_no_worker_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", workers)
    setup = make_setup(tmp_path)
    for file in setup.train.folders[0].images.iterdir():
        file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(UserError, match=r"Dataset500_Test/case_\d cannot be read .*nnssl_plan_and_preprocess again"):
        Pretraining(setup, CPU).run()
    assert not multiprocessing.active_children()


def test_run__a_gradient_that_is_not_finite_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = make_setup(tmp_path, num_epochs=1, gradient_clip=None, held_out=0)
    step = Vox2vec.step

    def poisoned(self: Vox2vec, batch: Batch) -> StepOutput:
        output = step(self, batch)
        output.loss.register_hook(lambda gradient: gradient * torch.inf)
        return output

    monkeypatch.setattr(Vox2vec, "step", poisoned)
    with pytest.raises(UserError, match=r"the gradient norm is (inf|nan) at step 0"):
        Pretraining(setup, CPU).run()
    assert not (setup.folder / FINAL).exists()
