"""The warning of a training that stays at the background, and its silence in every other one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnssl.finetuning.stuck import head_warning, is_stuck
from tests.finetuning.flare import log_of, make_trainer

SAID = "mean pseudo Dice is still .00 after"
NAN = float("nan")


def _ran(trainer: Any, epochs: list[tuple[int, int, int]], end: bool = True) -> list[str]:
    """Lines of the warning, of a training whose epochs count (tp, fp, fn) voxels of one class."""
    trainer.logger.local_logger.my_fantastic_logging["ema_fg_dice"] = []
    for counts in epochs:
        hard = {key: np.array([n]) for key, n in zip(("tp_hard", "fp_hard", "fn_hard"), counts, strict=True)}
        with np.errstate(invalid="ignore"):
            trainer.on_validation_epoch_end([{"loss": np.array(0.5), **hard}] * 2)
        trainer.current_epoch += 1
    if end:
        trainer.save_checkpoint = lambda _: None
        trainer.on_train_end()
    return [line for line in log_of(trainer).splitlines() if SAID in line]


@pytest.fixture
def made(flare: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("nnssl_checkpoint", "random")
    monkeypatch.setenv("nnssl_num_epochs", "40")
    return lambda name: make_trainer(flare, name)


NONE, MISSED, FOUND, WRONG = (0, 0, 0), (0, 0, 9), (5, 2, 4), (0, 7, 0)


def test_stuck__is_said_after_a_tenth_and_at_the_end(made: Any) -> None:
    trainer = made("SSLUNetFinetune")
    trainer.num_iterations_per_epoch = 250
    early, late = _ran(trainer, [FOUND] + [MISSED] * 39)
    assert f"{SAID} 4 of 40 epochs (1,000 steps at a rate of" in early and f"{SAID} 40 of 40 epochs (10,000" in late
    assert "predicts background only; " in early and "nnssl_initial_lr=" in early


def test_stuck__is_said_once_where_the_training_recovers(made: Any) -> None:
    assert len(_ran(made("SSLProbe"), [MISSED] * 30 + [FOUND] * 10)) == 1


def test_stuck__tells_wrong_places_from_background(made: Any) -> None:
    (line,) = _ran(made("PartialLabels"), [(0, 50, 9)] * 4, end=False)
    assert "finds no class where it is" in line and "background only" not in line


@pytest.mark.parametrize("epochs", [
    [MISSED, MISSED, FOUND] + [MISSED] * 20 + [FOUND] * 17,  # one good epoch in the second half of the first tenth
    [FOUND, FOUND, MISSED, FOUND] + [FOUND] * 36,
    [NONE] * 40,
    [WRONG] * 40,  # the validation has no foreground
    [FOUND] * 40,
])  # fmt: skip
def test_stuck__is_not_said_otherwise(made: Any, epochs: list[tuple[int, int, int]]) -> None:
    assert not _ran(made("PartialLabels"), epochs)


def test_stuck__counts_the_epochs_before_a_continued_training(made: Any) -> None:
    trainer = made("SSLUNetScratch")
    _ran(trainer, [MISSED] * 3, end=False)
    again = made("SSLUNetScratch")
    again.logger.load_checkpoint(trainer.logger.get_checkpoint())
    again.current_epoch = 3
    hard = {"tp_hard": np.array([0]), "fp_hard": np.array([0]), "fn_hard": np.array([9])}
    again.on_validation_epoch_end([{"loss": np.array(0.5), **hard}])
    assert f"{SAID} 4 of 40" in log_of(again)


def test_stuck__names_a_class_that_is_never_found(made: Any) -> None:
    """The mean rises without it."""
    trainer = made("SSLUNetFinetune")
    trainer.logger.local_logger.my_fantastic_logging["ema_fg_dice"] = []
    classes = len(trainer.label_manager.foreground_labels)
    tp, fn = np.full(classes, 5), np.full(classes, 2)
    tp[1] = 0
    for epoch in range(20):
        trainer.current_epoch = epoch
        outputs = {"loss": np.array(0.5), "tp_hard": tp, "fp_hard": np.ones(classes), "fn_hard": fn}
        trainer.on_validation_epoch_end([outputs])
    (said,) = (line for line in log_of(trainer).splitlines() if "WARNING" in line)
    name = next(n for n, value in trainer.dataset_json["labels"].items() if value == 2)
    assert f"pseudo Dice of {name} is still .00 after 20 of 40 epochs, while others are found" in said


def test_stuck__a_finished_training_that_is_continued_ends_in_silence(made: Any) -> None:
    """No epoch runs in this process, so that nothing is known of the classes."""
    trainer = made("SSLUNetFinetune")
    trainer.logger.local_logger.my_fantastic_logging.update(
        mean_fg_dice=[0.3] * 40, dice_per_class_or_region=[[0.6, 0.0]] * 40
    )
    trainer.current_epoch, trainer.save_checkpoint = 40, lambda _: None
    trainer.on_train_end()
    assert "WARNING" not in log_of(trainer)


@pytest.mark.parametrize(("dice", "expected"), [
    ([0, 0, 0], True), ([0.3, 0, 0], True), ([0, 0, 0.01], False), ([0, 0], False), ([0, NAN, NAN], False),
    ([0.5] * 9 + [0.1] + [0.0] * 10, True), ([0.0] * 10 + [0.1] + [0.0] * 9, False), ([0.0, 0.1, 0.0], False),
])  # fmt: skip
def test_is_stuck__asks_the_second_half_of_the_epochs(dice: list[float], expected: bool) -> None:
    assert is_stuck(dice) is expected


@pytest.mark.parametrize(("head", "steps", "rate", "words"), [
    ("linear", 320, 3e-4, "320 steps at a rate of 0.0003 move a weight of the linear head by about 0.096"),
    ("linear", 320, 3e-4, "export nnssl_initial_lr=0.01"),
    ("linear", 20, 1e-2, "train 2 times as long"),
    ("nonlinear", 160, 1e-4, "about 0.016"),
])  # fmt: skip
def test_head_warning__of_steps_that_cannot_move_the_head(head: str, steps: int, rate: float, words: str) -> None:
    assert words in str(head_warning(head, steps, rate))


@pytest.mark.parametrize(("head", "steps", "rate"), [
    ("linear", 45_000, 3e-4), ("nonlinear", 45_000, 3e-4), ("linear", 320, 1e-2), ("linear", 320, 1e-3),
    ("nonlinear", 320, 3e-4), ("unet", 10, 1e-4),
])  # fmt: skip
def test_head_warning__none_where_it_learns(head: str, steps: int, rate: float) -> None:
    assert head_warning(head, steps, rate) is None


def test_stuck__names_steps_and_rate_where_they_are_the_cause(made: Any) -> None:
    trainer = made("SSLLinearProbe")
    trainer.num_iterations_per_epoch = 8
    (line,) = _ran(trainer, [MISSED] * 4, end=False)
    assert "320 steps at a rate of 0.0003 move a weight" in line and "export nnssl_initial_lr=0.01" in line
