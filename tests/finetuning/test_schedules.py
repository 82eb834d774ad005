from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nnssl.finetuning.base_trainer import RateByEpoch
from nnssl.finetuning.recipes import vox2vec_unfreezing_rate, warmup_cosine_rate, warmup_poly_rate

REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "vox2vec.json").read_text())


def test_vox2vec_unfreezing_rate__as_the_paper_intends() -> None:
    vector = REFERENCE["finetune_backbone_lr"]
    rates = [vox2vec_unfreezing_rate(e) for e in vector["epochs_of_300_batches"]]
    assert rates == pytest.approx(vector["intended"], abs=1e-12)


def test_warmup_cosine_rate__rises_and_falls() -> None:
    rates = [warmup_cosine_rate(epoch, 1000, 3e-4, 100) for epoch in (0, 49, 99, 100, 550, 999)]
    assert rates == pytest.approx([3e-6, 1.5e-4, 3e-4, 3e-4, 1.5e-4, 9.1e-10], rel=1e-2)
    assert warmup_cosine_rate(0, 1, 3e-4, 0) == 3e-4


def test_rate_by_epoch__sets_every_group() -> None:
    optimiser = torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)]}, {"params": [torch.zeros(1)]}], 1.0)
    RateByEpoch(optimiser, lambda epoch: 0.5**epoch).step(3)
    assert [group["lr"] for group in optimiser.param_groups] == [0.125, 0.125]


def test_warmup_poly_rate__rises_and_falls_as_nnunets() -> None:
    from nnunetv2.training.lr_scheduler.warmup import Lin_incr_LRScheduler, PolyLRScheduler_offset

    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    rising, falling = Lin_incr_LRScheduler(optimiser, 1e-3, 50), PolyLRScheduler_offset(optimiser, 1e-3, 1000, 50)
    for epoch in (0, 1, 49, 50, 51, 500, 999):
        (rising if epoch < 50 else falling).step(epoch)
        assert warmup_poly_rate(epoch, 1000, 1e-3, 50) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-12)
    assert warmup_poly_rate(0, 1, 1e-3, 0) == 1e-3
