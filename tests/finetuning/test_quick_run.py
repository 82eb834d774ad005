from __future__ import annotations

from types import SimpleNamespace

import pytest

from nnssl.core.errors import UserError
from nnssl.finetuning.recipes import apply_settings


def _trainer() -> SimpleNamespace:
    return SimpleNamespace(
        num_epochs=150, num_iterations_per_epoch=300, num_val_iterations_per_epoch=50, initial_lr=3e-4
    )


def test_apply_settings__environment_before_plans_before_the_trainers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = _trainer()
    monkeypatch.setenv("nnssl_num_epochs", "2")
    monkeypatch.setenv("nnssl_initial_lr", "1e-2")
    apply_settings(trainer, {"num_epochs": 3, "num_iterations_per_epoch": 4, "initial_lr": 0.5})
    assert vars(trainer) == {
        "num_epochs": 2, "num_iterations_per_epoch": 4, "num_val_iterations_per_epoch": 50, "initial_lr": 0.01,
    }  # fmt: skip


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_apply_settings__refuses_what_is_no_length(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("nnssl_num_val_iterations_per_epoch", value)
    with pytest.raises(UserError, match="nnssl_num_val_iterations_per_epoch takes a whole number"):
        apply_settings(_trainer(), {})


@pytest.mark.parametrize("value", ["0", "-1", "fast", "inf", "nan"])
def test_apply_settings__refuses_what_is_no_rate(value: str) -> None:
    with pytest.raises(UserError, match="nnssl_initial_lr takes a number above 0"):
        apply_settings(_trainer(), {"initial_lr": value})
