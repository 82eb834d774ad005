from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nnssl.checkpoints.files import FINAL, LATEST, load_checkpoint
from nnssl.core.errors import UserError
from nnssl.methods.base import Batch, Method, StepOutput
from nnssl.methods.registry import get_method
from nnssl.pretraining import memory
from nnssl.pretraining.folder import Stored
from nnssl.pretraining.launch import in_sentences
from nnssl.pretraining.loop import Pretraining
from nnssl.pretraining.setup import Setup
from tests.cards import pretends_a_card
from tests.runs import CPU, make_setup, same_content


@pytest.fixture(autouse=True)
def _in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")


def test_run__that_goes_on_with_recomputed_activations_ends_bitwise_as_without(tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps_per_epoch": 2, "save_every_epochs": 1}
    whole = make_setup(tmp_path / "whole", **options)
    Pretraining(whole, CPU).run()
    part = make_setup(tmp_path / "part", **options)
    run = Pretraining(part, CPU)
    run.config = replace(part.config, num_epochs=1)
    run.run()
    asked = replace(part.config, checkpoint_activations=True)
    resumed = Pretraining(replace(part, config=asked, resume=Stored(part.folder / LATEST)), CPU)
    assert resumed.step == 2
    resumed.run()
    ends = [load_checkpoint(setup.folder / FINAL) for setup in (whole, part)]
    assert all(same_content(ends[0][key], ends[1][key]) for key in ("method_state", "optimiser_state", "step"))
    assert ends[1]["config"]["checkpoint_activations"] is True


def _fake_peak(setup: Setup, method: Method | None = None) -> float:
    """40 GiB for two volumes with patches of 8x16x16; refuses what the method refuses."""
    setup.build_method()
    config = setup.config
    recomputed = 0.5 if config.checkpoint_activations else 1.0
    return 40 * recomputed * config.volumes / 2 * math.prod(config.patch) / 2048 / config.accumulate


@pytest.mark.parametrize("method", ["vox2vec", "pimpic"])
def test_run__a_card_that_is_full_keeps_the_steps_and_is_told_what_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    whole, setup = (make_setup(tmp_path / name, method, num_epochs=1) for name in ("whole", "part"))
    Pretraining(whole, CPU).run()
    kind, calls = get_method(method), []
    step = kind.step

    def full(self: Method, batch: Batch) -> StepOutput:
        calls.append(batch)
        if len(calls) == 3:
            raise torch.cuda.OutOfMemoryError("full")
        return step(self, batch)

    monkeypatch.setattr(kind, "step", full)
    monkeypatch.setattr(memory, "peak_gib", _fake_peak)
    monkeypatch.setattr(memory, "card_gib", lambda: 24.0)
    with pytest.raises(UserError) as caught, in_sentences(setup):
        Pretraining(setup, CPU).run()
    said = str(caught.value)
    assert "24.0 GiB" in said and "needs about 40.0" in said
    assert "--c -o checkpoint_activations=true (about 20.0)" in said and "batch_size=1 (about 20.0)" in said
    assert "accumulate=" not in said, "the network normalises over the batch"
    assert "patch_size=8,8,8 (about 10.0)" in said
    monkeypatch.undo()
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    assert load_checkpoint(setup.folder / LATEST)["step"] == 2
    resumed = Pretraining(replace(setup, resume=Stored(setup.folder / LATEST)), CPU)
    resumed.run()
    ends = [load_checkpoint(s.folder / FINAL) for s in (whole, setup)]
    assert all(same_content(ends[0][key], ends[1][key]) for key in ("method_state", "optimiser_state", "step"))


def test_what_would_fit__names_the_options_of_the_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = make_setup(tmp_path, "pimpic", batch_size=1, crops=8)
    monkeypatch.setattr(memory, "peak_gib", lambda setup, method=None: (
        60 * setup.config.crops / 8 / setup.config.accumulate * (0.8 if setup.config.checkpoint_activations else 1)
    ))  # fmt: skip
    monkeypatch.setattr(memory, "card_gib", lambda: 24.0)
    said = memory.what_would_fit(setup)
    assert "-o accumulate=4 (about 15.0) or checkpoint_activations=true accumulate=4 (about 12.0)" in said
    assert "-o crops=2 (about 15.0)" in said and "batch_size=" not in said
    monkeypatch.setattr(memory, "peak_gib", lambda setup, method=None: 60.0)
    assert memory.what_would_fit(setup).endswith("use a card with more memory, or a smaller network")


def test_what_would_fit__of_a_step_that_cannot_be_rehearsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as that of a network of the user's own."""

    def fail(*_: Any) -> None:
        raise NotImplementedError("no fake implementation")

    setup = make_setup(tmp_path, "pimpic", batch_size=1, crops=8)
    monkeypatch.setattr(memory, "rehearse", fail)
    said = memory.what_would_fit(setup)
    assert "does not suffice" in said and "--c -o checkpoint_activations=true" in said and "crops=..." in said


@pretends_a_card
def test_peak_gib__is_of_one_process_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others do not rehearse, and would wait for ever; one pair a process suffices to Alice."""
    whole = make_setup(tmp_path / "whole", "alice", batch_size=4)
    share = replace(whole, config=replace(whole.config, batch_size=2))
    expected = memory.peak_gib(share, share.build_method())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    assert memory.peak_gib(whole) == pytest.approx(expected)
    assert memory.peak_gib(replace(whole, config=share.config)) > 0


@pretends_a_card
def test_announce_memory__of_a_rehearsed_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    setup = make_setup(tmp_path, "mae", patch_size=(32, 64, 64))
    recomputed = replace(setup, config=replace(setup.config, checkpoint_activations=True))
    assert 0 < memory.peak_gib(recomputed) < 0.8 * memory.peak_gib(setup)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (24 * 2**30, 32 * 2**30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 0)
    monkeypatch.setattr(memory, "peak_gib", lambda setup, method=None: 9.62)
    with caplog.at_level(logging.INFO, logger="nnssl"):
        memory.announce_memory(setup, setup.build_method())
    assert caplog.messages == ["A step needs about 9.6 GiB on the card, 24.0 are free"]


def test_announce_memory__an_old_torch_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    setup = make_setup(tmp_path, "pimpic", batch_size=1, crops=8)
    monkeypatch.setattr(torch, "__version__", "2.10.1+cu128")
    with caplog.at_level(logging.INFO, logger="nnssl"):
        memory.announce_memory(setup, setup.build_method())
    (said,) = caplog.messages
    assert "torch 2.11" in said and "2.10.1" in said
    assert "crops=..." in memory.what_would_fit(setup)
