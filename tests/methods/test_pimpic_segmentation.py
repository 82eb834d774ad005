from __future__ import annotations

import pytest
import torch

from nnssl.methods.pimpic.loss import softmax_dice_loss
from tests.networks.helpers import load_reference


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-6), (torch.bfloat16, 1e-6)])
def test_softmax_dice_loss__vector(dtype: torch.dtype, tolerance: float) -> None:
    case = load_reference("pimpic.json")["segmentation_dice"]
    logits, labels = torch.tensor(case["logits"], dtype=dtype), torch.tensor(case["labels"])
    assert abs(softmax_dice_loss(logits, labels).item() - case["value"]) < tolerance


def test_softmax_dice_loss__is_zero_for_sure_and_right_voxels_even_of_absent_classes() -> None:
    labels = torch.tensor([[[[0, 1, 1]]]])
    logits = 100 * torch.nn.functional.one_hot(labels[:, 0], 3).movedim(-1, 1).float()
    assert softmax_dice_loss(logits, labels).item() == pytest.approx(0, abs=1e-6)


def test_softmax_dice_loss__refuses_labels_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"labels \(B, 1, ...\)"):
        softmax_dice_loss(torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 4, 4, 4))
