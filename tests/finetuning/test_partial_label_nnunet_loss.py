from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.training.loss.compound_losses import DC_and_topk_loss
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor

from nnssl.core.errors import UserError
from nnssl.finetuning.partial_label_loss import partial_label_loss

HEADS = 4


def _nnunet_loss(regions: bool, ignore: int | None, batch_dice: bool, deep: bool) -> Any:
    """What nnU-Net's own `_build_loss` makes."""
    trainer: Any = nnUNetTrainer.__new__(nnUNetTrainer)
    trainer.label_manager = SimpleNamespace(has_regions=regions, ignore_label=ignore)
    trainer.configuration_manager = SimpleNamespace(
        batch_dice=batch_dice, pool_op_kernel_sizes=[[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]]
    )
    trainer.is_ddp, trainer.device, trainer.enable_deep_supervision = False, torch.device("cpu"), deep
    return trainer._build_loss()


def _level(shape: tuple[int, int, int], regions: bool, ignore: bool, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, HEADS, *shape, generator=generator)
    if regions:
        return logits, torch.rand(2, HEADS + ignore, *shape, generator=generator) > 0.6
    return logits, torch.randint(0, HEADS + ignore, (2, 1, *shape), generator=generator).to(torch.int16)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("ignore", [None, HEADS])
@pytest.mark.parametrize("regions", [False, True])
def test_partial_label_loss__is_nnunets_where_all_is_annotated(
    regions: bool, ignore: int | None, batch_dice: bool, deep: bool
) -> None:
    shapes = [(4, 8, 8), (4, 4, 4), (2, 2, 2)][: 3 if deep else 1]
    levels = [_level(shape, regions, ignore is not None, seed) for seed, shape in enumerate(shapes)]
    theirs = _nnunet_loss(regions, ignore, batch_dice, deep)
    ours = partial_label_loss(_nnunet_loss(regions, ignore, batch_dice, deep), "T")
    ours.annotated = torch.ones(2, HEADS, dtype=torch.bool)
    results = []
    for loss in (theirs, ours):
        outputs = [logits.clone().requires_grad_() for logits, _ in levels]
        targets = [target for _, target in levels]
        value = loss(outputs, targets) if deep else loss(outputs[0], targets[0])
        results.append((value, torch.autograd.grad(value, outputs, allow_unused=True)))
    (expected, expected_gradients), (value, gradients) = results
    assert abs(value.item() - expected.item()) < 1e-6
    for gradient, of_nnunet in zip(gradients, expected_gradients, strict=True):
        assert (gradient is None) == (of_nnunet is None)  # nnU-Net leaves the lowest level out
        if gradient is not None:
            torch.testing.assert_close(gradient, of_nnunet, atol=1e-7, rtol=1e-4)


def test_partial_label_loss__keeps_the_weights_of_deep_supervision_for_partial_labels() -> None:
    levels = [_level(shape, False, False, seed) for seed, shape in enumerate([(4, 8, 8), (4, 4, 4), (2, 2, 2)])]
    outputs, targets = ([level[i] for level in levels] for i in (0, 1))
    deep = partial_label_loss(_nnunet_loss(False, None, True, True), "T")
    flat = partial_label_loss(_nnunet_loss(False, None, True, False), "T")
    deep.annotated = flat.annotated = torch.tensor([[True, False, True, False], [True, True, False, False]])
    values = [flat(output, target).item() for output, target in zip(outputs, targets, strict=True)]
    assert deep(outputs, targets).item() == pytest.approx(np.dot([2 / 3, 1 / 3, 0], values))


def test_partial_label_loss__another_loss_is_refused() -> None:
    loss = DC_and_topk_loss({"batch_dice": False}, {"k": 10})
    with pytest.raises(UserError, match=r"trains with DC_and_topk_loss.*nnUNetTrainer_PartialLabels"):
        partial_label_loss(loss, "nnUNetTrainerDiceTopK10Loss")
