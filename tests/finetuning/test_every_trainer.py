"""One training step of every trainer that nnU-Net finds in the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.finetuning.flare import finish, make_trainer, same, state_of
from tests.golden.surface import trainers

NAMES = [name.removeprefix("nnUNetTrainer_") for name in trainers()]


def test_trainers__are_all_here() -> None:
    assert len(NAMES) >= 21 and {"PimpicFinetune", "Vox2vecProbePublished", "SSLUNetFinetune"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_step__changes_what_is_trained(flare: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    if "Distill" in name:
        teacher = make_trainer(flare, "PartialLabels")
        monkeypatch.setenv("nnssl_teacher", str(finish(teacher)))
    elif name not in ("LAPN", "SSLEncodings"):  # which read the encodings of the pretraining that is there
        monkeypatch.setenv("nnssl_checkpoint", "random")
    trainer = make_trainer(flare, name)
    monkeypatch.setattr(trainer, "plot_network_architecture", lambda: None)
    trainer.on_train_start()
    trained = {n for n, p in trainer.network.named_parameters() if p.requires_grad}
    before = state_of(trainer.network)
    trainer.on_train_epoch_start()
    assert np.isfinite(trainer.train_step(next(trainer.dataloader_train))["loss"])
    trainer.on_validation_epoch_start()
    assert np.isfinite(trainer.validation_step(next(trainer.dataloader_val))["loss"])
    after = state_of(trainer.network)
    changed = {n for n in trained if not same({n: before[n]}, {n: after[n]})}
    assert changed and len(changed) >= len(trained) // 2
    frozen = {n for n, p in trainer.network.named_parameters() if not p.requires_grad}
    assert same({n: before[n] for n in frozen}, {n: after[n] for n in frozen})
