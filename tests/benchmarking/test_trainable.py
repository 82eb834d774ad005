from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from nnssl.benchmarking.methods import count_trained, trainable_parameters
from tests.foreign_plans import hide_command_in


def _after_a_step(make, frozen: bool) -> int | None:  # type: ignore[no-untyped-def]
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    if frozen:
        network[0].requires_grad_(False)
    optimiser = make([p for p in network.parameters() if p.requires_grad])
    network(torch.rand(5, 4)).sum().backward()
    optimiser.step()
    return count_trained(optimiser.state_dict())


def test_count_trained__what_the_optimiser_moved() -> None:
    for make in (torch.optim.Adam, torch.optim.AdamW, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)):
        assert _after_a_step(make, frozen=False) == 15 + 6 + 8
        assert _after_a_step(make, frozen=True) == 6 + 8


def test_count_trained__unknown_without_a_state() -> None:
    assert _after_a_step(lambda p: torch.optim.SGD(p, 0.1), frozen=False) is None


def test_trainable_parameters__runs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, marker = tmp_path / "checkpoint_final.pth", tmp_path / "called"
    torch.save({"optimizer_state": {"state": {0: {"exp_avg": torch.zeros(3, 4)}}}}, file)
    assert trainable_parameters(tmp_path) == 12
    hide_command_in(file, marker)
    with caplog.at_level(logging.WARNING, "nnssl"):
        assert trainable_parameters(tmp_path) is None
    assert not marker.exists() and f"{file} is not opened" in caplog.text
