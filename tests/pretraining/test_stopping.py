from __future__ import annotations

from nnssl.pretraining.stopping import Stopping


def test_stopping__ends_after_epochs_without_a_lower_loss_and_is_continued() -> None:
    stopping = Stopping(2)
    assert [stopping.add({"val_loss": loss}) for loss in (3.0, 2.0, 2.5)] == [True, True, False]
    assert not stopping.is_due
    later = Stopping(2)
    later.load_state(stopping.state())
    assert not later.add({"val_loss": 2.0}) and later.is_due


def test_stopping__without_patience_counts_nothing() -> None:
    stopping = Stopping(None)
    assert not stopping.add({"val_loss": 1.0}) and not stopping.is_due and stopping.state() == {}
    stopping.load_state({})
