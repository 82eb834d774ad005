from __future__ import annotations

from types import SimpleNamespace

import pytest

from nnssl.errors import UserError
from nnssl.finetuning.quick_run import set_lengths


def _trainer() -> SimpleNamespace:
    return SimpleNamespace(num_epochs=150, num_iterations_per_epoch=300, num_val_iterations_per_epoch=50)


def test_set_lengths__environment_before_plans_before_the_trainers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = _trainer()
    monkeypatch.setenv("nnssl_num_epochs", "2")
    set_lengths(trainer, {"num_epochs": 3, "num_iterations_per_epoch": 4})
    assert vars(trainer) == {"num_epochs": 2, "num_iterations_per_epoch": 4, "num_val_iterations_per_epoch": 50}


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_set_lengths__refuses_what_is_no_length(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("nnssl_num_val_iterations_per_epoch", value)
    with pytest.raises(UserError, match="nnssl_num_val_iterations_per_epoch takes a whole number"):
        set_lengths(_trainer(), {})
