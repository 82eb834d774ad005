"""What the losses of the trainers make the host wait for, on a card that is only pretended."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nnssl.core.pretended_card import CARD, pretended_card
from nnssl.finetuning.distillation_loss import teaching_loss
from nnssl.finetuning.partial_label_loss import PartialLabelLoss, PartialRegionLoss
from nnssl.methods.pimpic.loss import softmax_dice_loss
from nnssl.methods.vox2vec.method import vox2vec_segmentation_loss
from tests.cards import pretends_a_card

pytestmark = pretends_a_card

_PARTLY = torch.tensor([[True, True, False], [True, False, True]])

LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "partial labels": lambda logits, labels: PartialLabelLoss()(logits, labels, _PARTLY),
    "partial labels, batch Dice": lambda logits, labels: PartialLabelLoss(batch_dice=True)(logits, labels, _PARTLY),
    "partial regions": lambda logits, labels: PartialRegionLoss()(logits, labels.expand(-1, 3, -1, -1, -1), _PARTLY),
    "distillation": lambda logits, labels: teaching_loss(logits, torch.zeros_like(logits), 2.0),
    "distillation, Dice": lambda logits, labels: teaching_loss(logits, torch.zeros_like(logits), 2.0, dice_ce=True),
    "distillation, regions": lambda logits, labels: teaching_loss(logits, torch.zeros_like(logits), 2.0, regions=True),
    "pimpic": lambda logits, labels: softmax_dice_loss(logits, labels),
    "vox2vec": lambda logits, labels: vox2vec_segmentation_loss(logits, labels.expand(-1, 3, -1, -1, -1)),
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_loss__waits_for_nothing_under_fp16(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pretended_card() as card, torch.autocast("cuda", torch.float16):
        weight = torch.zeros(3, 1, 1, 1, 1, device=CARD, requires_grad=True)
        logits = torch.nn.functional.conv3d(torch.zeros(2, 1, 8, 8, 8, device=CARD), weight)
        loss(logits, torch.zeros(2, 1, 8, 8, 8, device=CARD)).backward()
        assert weight.grad is not None and weight.grad.dtype == torch.float32
    assert not card.waits, [str(wait) for wait in card.waits]
