"""Early stopping inside nnU-Net's own loop, with validation losses of our choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnssl.core.errors import UserError
from tests.finetuning.flare import log_of, make_trainer, same, state_of

LOSSES = (3.0, 2.0, 2.5, 1.5, 1.7, 1.5, 1.6, 1.4, 1.4)  # the second 1.5 is not lower; a patience of 3 ends at the 1.6


@pytest.fixture(autouse=True)
def quick(flare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("checkpoint", "random"), ("num_epochs", 9), ("num_iterations_per_epoch", 1)):
        monkeypatch.setenv(f"nnssl_{name}", str(value))


def _made(flare: Path, monkeypatch: pytest.MonkeyPatch, losses: Sequence[float], continued: bool = False) -> Any:
    """A trainer whose validation losses are given; `states` holds the weights after every epoch that ran."""
    trainer = make_trainer(flare, "SSLUNetFinetune", continued)
    trainer.states = {}

    def validation_step(batch: dict) -> dict:
        counts = dict.fromkeys(("tp_hard", "fp_hard", "fn_hard"), np.ones(2))
        trainer.states[trainer.current_epoch] = state_of(trainer.network)
        return {"loss": np.array(losses[trainer.current_epoch]), **counts}

    monkeypatch.setattr(trainer, "validation_step", validation_step)
    monkeypatch.setattr(trainer, "plot_network_architecture", lambda: None)
    return trainer


def _folder(trainer: Any) -> Path:
    return Path(trainer.output_folder)


def _weights(file: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(file, weights_only=False)["network_weights"]
    return weights


def test_patience__stops_and_ends_with_the_best(flare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnssl_patience", "3")
    trainer = _made(flare, monkeypatch, LOSSES)
    trainer.run_training()
    assert trainer.current_epoch == 7 and list(trainer.states) == list(range(7))
    for name in ("best", "final"):
        assert same(_weights(_folder(trainer) / f"checkpoint_{name}.pth"), trainer.states[3]), name
    assert same(state_of(trainer.network), trainer.states[3])  # what the validation that follows uses
    assert not (_folder(trainer) / "checkpoint_latest.pth").exists()
    assert "Early stopping after epoch 6: no lower validation loss for 3 epochs (patience 3)" in log_of(trainer)
    assert "the lowest was that of epoch 3" in log_of(trainer) and not same(trainer.states[3], trainer.states[6])


def test_patience__that_is_never_used_up_ends_with_the_best_too(flare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnssl_patience", "5")
    trainer = _made(flare, monkeypatch, LOSSES)
    trainer.run_training()
    assert trainer.current_epoch == 9
    assert same(_weights(_folder(trainer) / "checkpoint_final.pth"), trainer.states[7])


def test_no_patience__is_nnunets_own_training(flare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = _made(flare, monkeypatch, LOSSES)
    trainer.run_training()
    assert trainer.current_epoch == 9 and trainer.patience is None
    assert same(_weights(_folder(trainer) / "checkpoint_final.pth"), trainer.states[8])
    assert same(_weights(_folder(trainer) / "checkpoint_best.pth"), trainer.states[0])  # the Dice never rises


def test_patience__a_stopped_training_stays_stopped(flare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnssl_patience", "3")
    trainer = _made(flare, monkeypatch, LOSSES)
    trainer.run_training()
    final = _folder(trainer) / "checkpoint_final.pth"
    again = _made(flare, monkeypatch, LOSSES, continued=True)
    again.load_checkpoint(str(final))
    again.run_training()
    assert not again.states and same(_weights(final), trainer.states[3])
    monkeypatch.setenv("nnssl_patience", "4")
    longer = _made(flare, monkeypatch, LOSSES, continued=True)
    longer.load_checkpoint(str(final))
    longer.run_training()
    assert list(longer.states) == [7, 8] and same(_weights(final), longer.states[7])


@pytest.mark.parametrize("stop_at", [5, 6])
def test_patience__goes_on_where_it_was_cut_off(flare: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int) -> None:
    monkeypatch.setenv("nnssl_patience", "3")
    trainer = _made(flare, monkeypatch, LOSSES)
    trainer.save_every = 2  # latest after epochs 1, 5, 7; that of epoch 1 is the best and goes
    step = trainer.train_step

    def cut_off(batch: dict) -> dict:
        if trainer.current_epoch == stop_at:
            raise KeyboardInterrupt
        result: dict = step(batch)
        return result

    monkeypatch.setattr(trainer, "train_step", cut_off)
    with pytest.raises(KeyboardInterrupt):
        trainer.run_training()
    latest = _folder(trainer) / "checkpoint_latest.pth"
    again = _made(flare, monkeypatch, LOSSES, continued=True)
    again.load_checkpoint(str(latest if latest.is_file() else latest.with_name("checkpoint_best.pth")))
    assert again.current_epoch == {5: 4, 6: 6}[stop_at]  # nothing after the best was saved; that of epoch 5 was
    again.run_training()
    assert again.current_epoch == 7
    assert same(_weights(_folder(again) / "checkpoint_final.pth"), trainer.states[3])


def test_patience__of_a_training_that_began_without_counts_from_there(
    flare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnssl_num_epochs", "3")
    before = _made(flare, monkeypatch, (1.0, 2.0, 3.0))
    before.run_training()
    (_folder(before) / "checkpoint_best.pth").unlink()
    monkeypatch.setenv("nnssl_num_epochs", "9")
    monkeypatch.setenv("nnssl_patience", "2")
    trainer = _made(flare, monkeypatch, (1, 2, 3, 2.5, 2, 2.7, 2.6, 9, 9), continued=True)
    trainer.load_checkpoint(str(_folder(before) / "checkpoint_final.pth"))
    trainer.run_training()
    assert "early stopping counts from epoch 3 on" in log_of(trainer) and list(trainer.states) == [3, 4, 5, 6]
    assert same(_weights(_folder(before) / "checkpoint_final.pth"), trainer.states[4])


def test_patience__losses_without_a_number_are_never_better(flare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnssl_patience", "2")
    trainer = _made(flare, monkeypatch, (float("nan"),) * 9)
    trainer.run_training()
    assert trainer.current_epoch == 2 and "No best checkpoint was kept" in log_of(trainer)
    assert same(_weights(_folder(trainer) / "checkpoint_final.pth"), trainer.states[1])


def test_patience__of_the_plans_block_and_what_is_none(monkeypatch: pytest.MonkeyPatch, flare: Path) -> None:
    from tests.finetuning.flare import read_plans

    plans = read_plans(flare) | {"nnssl": {"patience": 7}}
    assert make_trainer(flare, "PartialLabels", plans=plans).patience == 7
    monkeypatch.setenv("nnssl_patience", "soon")
    with pytest.raises(UserError, match="nnssl_patience takes a whole number"):
        make_trainer(flare, "PartialLabels", plans=plans)
