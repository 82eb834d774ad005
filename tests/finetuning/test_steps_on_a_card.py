"""A whole training step of the trainers on a card that is only pretended, beside that of nnU-Net's own trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

from nnssl.core.pretended_card import CARD, PretendedCard, pretended_card
from tests.cards import pretends_a_card
from tests.finetuning.flare import CPU, copy_folders, finish, make_trainer, read_plans
from tests.finetuning.half_annotated import NAME
from tests.golden.surface import trainers

pytestmark = pretends_a_card

_QUICK = ("Vox2vecFinetune", "LAPN", "LAPNDistill", "PartialLabels", "SSLUNetFinetune")
_NAMES = [name.removeprefix("nnUNetTrainer_") for name in trainers()]


def _on(card: PretendedCard, trainer: Any) -> None:
    """Move a trainer that has begun on the CPU."""
    trainer.device, trainer.network = CARD, card.take(trainer.network)
    if getattr(trainer, "teacher", None) is not None:
        trainer.teacher.network = card.take(trainer.teacher.network)
    trainer.optimizer, trainer.lr_scheduler = trainer.configure_optimizers()
    trainer.grad_scaler = torch.amp.GradScaler("cuda")


def _remarks(trainer: Any) -> list[str]:
    """What the host waits for in the second step, and float64; the batch is pinned as by nnU-Net's loaders."""
    trainer.plot_network_architecture = lambda: None
    trainer.on_train_start()
    trainer.on_train_epoch_start()
    batches = [next(trainer.dataloader_train) for _ in range(2)]
    with pretended_card() as card:
        _on(card, trainer)
        for batch in batches:
            targets = batch["target"] if isinstance(batch["target"], list) else [batch["target"]]
            card.pin({str(number): tensor for number, tensor in enumerate([batch["data"], *targets])})
            card.begin()
            assert trainer.train_step(batch)["loss"].dtype == "float32"
        found = [str(remark) for remark in [*card.waits, *card.wide]]
        assert not _waits_of_prediction(card, trainer, batch["data"])
    return found


def _waits_of_prediction(card: PretendedCard, trainer: Any, patches: Tensor) -> list[str]:
    """What the host waits for in the network's part of nnU-Net's prediction."""
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    card.begin()
    with torch.no_grad(), torch.autocast("cuda"):
        logits = trainer.network(patches.to(CARD, non_blocking=True))
    assert logits.dtype in (torch.float16, torch.float32) and logits.shape[2:] == patches.shape[2:]
    return [str(wait) for wait in card.waits]


@pytest.fixture(scope="module")
def stock(flare_prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Those of nnU-Net's trainer: it reads whether the gradients overflow, and the loss; the scale is inverted."""
    with pytest.MonkeyPatch.context() as patch:
        root = copy_folders(flare_prepared, tmp_path_factory.mktemp("stock"), patch)
        content = json.loads((root / "preprocessed" / NAME / "dataset.json").read_text())
        trainer: Any = nnUNetTrainer(read_plans(root) | {"continue_training": False}, "3d_fullres", 0, content, CPU)
        return _remarks(trainer)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in _QUICK)) for n in _NAMES])
def test_train_step__waits_as_often_as_nnunets(
    flare: Path, monkeypatch: pytest.MonkeyPatch, stock: list[str], name: str
) -> None:
    if "Distill" in name:
        monkeypatch.setenv("nnssl_teacher", str(finish(make_trainer(flare, "PartialLabels"))))
    elif name not in ("LAPN", "SSLEncodings"):  # which read the encodings of the pretraining that is there
        monkeypatch.setenv("nnssl_checkpoint", "random")
    found = _remarks(make_trainer(flare, name))
    assert len(found) == len(stock) == 4, (found, stock)
