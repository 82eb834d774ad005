from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nnssl.errors import UserError
from nnssl.pretraining.checkpoint import FINAL, load_checkpoint
from nnssl.pretraining.launch import check_device, launch
from nnssl.pretraining.metrics import read_rows
from tests.runs import make_setup


def test_launch__two_processes_train_as_one_with_the_whole_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss, gradient norm and weights: the data, the negatives, the batch statistics and the averaging all agree."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # SGD: Adam would turn rounding differences of tiny gradients into whole steps
    options = {"batch_size": 4, "optimiser": "sgd", "learning_rate": 0.01, "num_epochs": 1}
    one, two = (make_setup(tmp_path / name, **options) for name in ("one", "two"))
    launch(one, "cpu", 1)
    launch(two, "cpu", 2)
    rows = [read_rows(s.folder / "metrics.jsonl")[0] for s in (one, two)]
    for name in ("loss", "gradient_norm", "val_loss", "similarity"):
        assert rows[1][name] == pytest.approx(rows[0][name], rel=1e-4), name
    states = [load_checkpoint(s.folder / FINAL)["method_state"] for s in (one, two)]
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


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
