from __future__ import annotations

import gc
import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing import start_processes

from nnssl.checkpoints.files import FINAL, load_checkpoint
from nnssl.core.distributed import check_device, resolve_device
from nnssl.core.errors import UserError
from nnssl.data.loader import SampleDataset, Stream, make_loader, positions_of_rank
from nnssl.pretraining.launch import launch, said_by
from nnssl.pretraining.loop import Pretraining
from nnssl.pretraining.metrics import read_rows
from nnssl.pretraining.setup import Setup
from tests.runs import CPU, make_setup


def _double_gradients(rank: int, setup: Setup, world: int, port: int, steps: int) -> None:
    """Sums over the first steps of loss and gradients in float64, as DistributedDataParallel leaves them on rank 0."""
    if world > 1:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        dist.init_process_group("gloo", rank=rank, world_size=world)
    run = Pretraining(setup, CPU)
    method = run.method.double()
    model = nn.parallel.DistributedDataParallel(method) if world > 1 else method
    dataset = SampleDataset(type(method), setup.config, setup.train, setup.val)
    total = torch.zeros((), dtype=torch.float64)
    keys: list[tuple[Stream, int]] = [("train", step) for step in range(steps)]
    for batch in make_loader(dataset, keys, positions_of_rank(4, rank, world), CPU):
        views = method.augment(batch.tensors)
        loss = model({k: v.double() if v.is_floating_point() else v for k, v in views.items()}).loss
        loss.backward()
        total += loss.detach()
    if world > 1:
        dist.all_reduce(total)
        del model, loss  # they hold the group, whose threads must not outlive it
        gc.collect()
        dist.destroy_process_group()
    if rank == 0:
        gradients = {k: v.grad for k, v in method.named_parameters() if v.grad is not None}
        torch.save({"loss": total / world, "gradients": gradients}, setup.folder / "gradients.pt")


_MORE = pytest.mark.slow  # a method for each way of gathering is enough for every day


@pytest.mark.parametrize(("method", "options"), [
    pytest.param("vox2vec", {}, id="vox2vec"),
    pytest.param("voco", {}, id="voco", marks=_MORE),
    pytest.param("pimpic", {}, id="pimpic", marks=_MORE),
    # one of the processes then has no pair for PiC, and both compare all patches by PiM
    pytest.param("pimpic", {"crops": 2, "least_overlap": 0.55, "across_volumes": True}, id="pimpic across volumes"),
    pytest.param("lapn", {}, id="lapn", marks=_MORE),
    pytest.param("lapn", {"negatives": "batch", "symmetric": True}, id="lapn in a batch", marks=_MORE),
    pytest.param("sam", {"global_negatives": 0}, id="sam", marks=_MORE),  # those are each process's own
    pytest.param("mae", {}, id="mae", marks=_MORE),
    pytest.param("alice", {}, id="alice", marks=_MORE),
    pytest.param("alice", {"objective": "code"}, id="alice's code", marks=_MORE),
])  # fmt: skip
def test_step__two_processes_give_loss_and_gradient_of_the_whole_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, options: dict[str, Any]
) -> None:
    """The data, the negatives, the queue, the batch statistics of network and head, and the averaging."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one, two = (make_setup(tmp_path / name, method, batch_size=4, **options) for name in ("one", "two"))
    # the second step sees what the first one left: the queue, the centres
    steps = 2 if method in ("lapn", "alice") else 1
    _double_gradients(0, one, 1, 0, steps)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start_processes(_double_gradients, (two, 2, port, steps), 2, start_method="spawn")
    whole, shared = (torch.load(s.folder / "gradients.pt", weights_only=True) for s in (one, two))
    torch.testing.assert_close(shared["loss"], whole["loss"], rtol=1e-12, atol=0)
    assert whole["loss"] > 0
    assert whole["gradients"].keys() == shared["gradients"].keys() and len(whole["gradients"]) > 40
    for name, gradient in whole["gradients"].items():
        difference = (shared["gradients"][name] - gradient).abs().max()
        assert difference <= 1e-9 * (1 + gradient.abs().max()), name


def test_launch__processes_of_one_machine_train_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # float32, and batch statistics of few voxels: rounding differences grow from step to step
    one, two = (make_setup(tmp_path / name, batch_size=4, num_epochs=1, steps_per_epoch=1) for name in ("one", "two"))
    launch(one, "cpu", 1)
    launch(two, "cpu", 2)
    rows = [read_rows(s.folder / "metrics.jsonl")[0] for s in (one, two)]
    for name in ("loss", "val_loss", "similarity", "pairs"):
        # the pairs are counted by each process
        factor = 2 if name == "pairs" else 1
        assert factor * rows[1][name] == pytest.approx(rows[0][name], rel=1e-3), name
    assert {f.name for f in one.folder.iterdir()} == {f.name for f in two.folder.iterdir()}
    assert load_checkpoint(two.folder / FINAL)["step"] == 1


@pytest.mark.parametrize(("rank", "said"), [(0, ""), (1, "error in process 1: no such volume\n")])
def test_said_by__a_process_whose_command_is_silent_says_its_mistake(
    capsys: pytest.CaptureFixture[str], rank: int, said: str
) -> None:
    with pytest.raises(UserError), said_by(rank):
        raise UserError("no such volume")
    assert capsys.readouterr().err == said


def test_check_device__mistakes_name_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="-device cpu"):
        check_device("cuda", 1)
    with pytest.raises(UserError, match="no device 'gpu'"):
        check_device("gpu", 1)
    with pytest.raises(UserError, match="-num_gpus"):
        check_device("cpu", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="4 is more than the 2 cards"):
        check_device("cuda", 4)


def test_resolve_device__the_card_where_there_is_one_else_the_cpu_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("cpu") == "cpu" and not caplog.messages
    assert resolve_device(None) == "cpu"
    (said,) = caplog.messages
    assert "-device cpu" in said
    with pytest.raises(UserError, match="-device cpu"):
        resolve_device("cuda")
    with pytest.raises(UserError, match="-num_gpus"):
        resolve_device(None, 0)
    caplog.clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert resolve_device(None) == "cuda" and resolve_device("cpu") == "cpu" and not caplog.messages
