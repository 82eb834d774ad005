from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nnssl.methods.vox2vec.loss import vox2vec_segmentation_loss

REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "vox2vec.json").read_text())["segmentation_loss"]


def reference() -> tuple[Tensor, Tensor, Tensor]:
    logits, target = (torch.tensor(REFERENCE[name], dtype=torch.float64) for name in ("logits", "target"))
    return logits, target, torch.tensor(REFERENCE["roi"])


def test_vox2vec_segmentation_loss__reference() -> None:
    logits, target, roi = reference()
    assert vox2vec_segmentation_loss(logits, target, roi).item() == pytest.approx(REFERENCE["loss_with_roi"], abs=1e-9)
    assert vox2vec_segmentation_loss(logits, target).item() == pytest.approx(REFERENCE["loss_without_roi"], abs=1e-9)


def test_vox2vec_segmentation_loss__outside_the_body_counts_for_nothing() -> None:
    logits, target, roi = reference()
    logits.requires_grad_()
    vox2vec_segmentation_loss(logits, target, roi).backward()
    outside = ~roi[:, None].expand_as(logits)
    assert logits.grad is not None and not logits.grad[outside].any() and logits.grad[~outside].all()
    changed = torch.where(outside, 50.0, logits.detach())
    torch.testing.assert_close(
        vox2vec_segmentation_loss(changed, 1 - target * ~outside - (1 - target) * ~outside, roi),
        vox2vec_segmentation_loss(changed, torch.zeros_like(target), roi),
    )


def test_vox2vec_segmentation_loss__dice_is_averaged_over_items() -> None:
    logits, target, roi = reference()
    twice = vox2vec_segmentation_loss(
        logits.repeat(2, 1, 1, 1, 1), target.repeat(2, 1, 1, 1, 1), roi.repeat(2, 1, 1, 1)
    )
    torch.testing.assert_close(twice, vox2vec_segmentation_loss(logits, target, roi))


def test_vox2vec_segmentation_loss__empty_body_has_no_gradient() -> None:
    logits, target, roi = reference()
    logits.requires_grad_()
    loss = vox2vec_segmentation_loss(logits, target, torch.zeros_like(roi))
    loss.backward()
    assert loss == 1 and logits.grad is not None and not logits.grad.any()


def test_vox2vec_segmentation_loss__half_precision_is_computed_in_float32() -> None:
    logits, target, roi = reference()
    half = logits.to(torch.bfloat16)  # these logits are exact in bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = vox2vec_segmentation_loss(half, target.bool(), roi)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(REFERENCE["loss_with_roi"], rel=1e-6)


@pytest.mark.parametrize(("target", "roi"), [((1, 2, 1, 2, 3), (1, 1, 2, 2)), ((1, 2, 1, 2, 2), (1, 1, 1, 2, 2))])
def test_vox2vec_segmentation_loss__bad_shapes(target: tuple[int, ...], roi: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must"):
        vox2vec_segmentation_loss(torch.zeros(1, 2, 1, 2, 2), torch.zeros(target), torch.ones(roi))
