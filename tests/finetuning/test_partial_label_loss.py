from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nnssl.finetuning.partial_label_loss import PartialLabelLoss, PartialRegionLoss, merge_missing
from tests.networks.helpers import load_reference

CLASSES = 5


def _case(batch: int = 3, classes: int = CLASSES, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (B, C, 3, 4, 5) and labels (B, 1, 3, 4, 5)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, classes, 3, 4, 5, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, classes, (batch, 1, 3, 4, 5), generator=generator)


def _annotated(*rows: str) -> Tensor:
    """One row a case, such as "11010"."""
    return torch.tensor([[letter == "1" for letter in row] for row in rows])


def _hidden(labels: Tensor, annotated: Tensor) -> Tensor:
    """The label map in which nobody drew what is not annotated."""
    drawn = annotated.gather(1, labels.flatten(1)).view_as(labels)
    return labels.masked_fill(~drawn, 0)


def _gradient(loss: Tensor, logits: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, logits)
    return gradient


def _vector() -> tuple[dict[str, Any], Tensor, Tensor, Tensor]:
    vector = load_reference("lapn.json")["partial_label"]
    logits = torch.tensor(vector["logits"], dtype=torch.float64).T[None]  # (1, classes, voxels)
    annotated = torch.tensor([[c == 0 or c in vector["annotated_foreground"] for c in range(logits.shape[1])]])
    return vector, logits, torch.tensor(vector["labels"])[None, None], annotated


def test_partial_label_loss__vector() -> None:
    vector, logits, labels, annotated = _vector()
    cross_entropy = PartialLabelLoss(weight_dice=0)
    expected = pytest.approx(vector["marginal_cross_entropy"], abs=1e-7)
    assert cross_entropy(logits, labels, annotated).item() == expected
    complete = torch.ones_like(annotated)
    plain = pytest.approx(vector["plain_cross_entropy"], abs=1e-7)
    assert cross_entropy(logits, labels, complete).item() == plain
    dice = 1 + PartialLabelLoss(weight_ce=0)(logits, labels, annotated).item()
    assert dice == pytest.approx(vector["dice_loss_class1"], abs=1e-7)


def test_merge_missing__adds_probabilities() -> None:
    logits, _ = _case()
    merged = merge_missing(logits, _annotated("11010", "11111", "10000")).softmax(1)
    plain = logits.softmax(1)
    torch.testing.assert_close(merged[0, 0], plain[0, [0, 2, 4]].sum(0))
    torch.testing.assert_close(merged[0, [1, 3]], plain[0, [1, 3]])
    torch.testing.assert_close(merged[1], plain[1])
    assert torch.equal(merged[2, 0], torch.ones_like(merged[2, 0]))


@pytest.mark.parametrize("batch_dice", [False, True])
def test_partial_label_loss__exchange_of_background_and_missing_costs_nothing(batch_dice: bool) -> None:
    logits, labels = _case()
    annotated = _annotated("11010", "11111", "10110")
    labels = _hidden(labels, annotated)
    loss = PartialLabelLoss(batch_dice=batch_dice)
    probability = logits.softmax(1)
    moved = probability.clone()
    moved[0, 0] += 0.9 * probability[0, 2]  # class 2 is missing in case 0
    moved[0, 2] *= 0.1
    before, after = (loss(p.log(), labels, annotated) for p in (probability, moved))
    torch.testing.assert_close(before, after)
    wanted = probability.clone()
    wanted[0, 0] += 0.9 * probability[0, 1]  # class 1 is annotated there
    wanted[0, 1] *= 0.1
    assert abs(loss(wanted.log(), labels, annotated) - before) > 1e-3

    log_p = probability.log().requires_grad_()
    by_probability = _gradient(loss(log_p, labels, annotated), log_p) / probability
    for case, missing in ((0, 2), (0, 4), (2, 1), (2, 4)):
        exchange = by_probability[case, 0] - by_probability[case, missing]
        torch.testing.assert_close(exchange, torch.zeros_like(exchange))
    assert (by_probability[1, 0] - by_probability[1, 2]).abs().max() > 1e-3  # complete


@pytest.mark.parametrize("batch_dice", [False, True])
def test_partial_label_loss__a_case_without_annotation_leaves_the_batch(batch_dice: bool) -> None:
    logits, labels = _case()
    annotated = _annotated("11111", "10000", "11010")
    labels = _hidden(labels, annotated)
    loss, others = PartialLabelLoss(batch_dice=batch_dice, do_bg=True), [0, 2]
    logits.requires_grad_()
    value = loss(logits, labels, annotated)
    torch.testing.assert_close(value, loss(logits[others], labels[others], annotated[others]))
    gradient = _gradient(value, logits)
    assert gradient[1].abs().max() == 0 and gradient[others].abs().min() > 0


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("ignore", [None, CLASSES])
def test_partial_label_loss__nothing_annotated_is_0_with_a_gradient_of_0(batch_dice: bool, ignore: int | None) -> None:
    logits, labels = _case()
    logits.requires_grad_()
    value = PartialLabelLoss(batch_dice=batch_dice, ignore_label=ignore)(logits, labels, _annotated(*["10000"] * 3))
    assert value.item() == 0
    assert torch.equal(_gradient(value, logits), torch.zeros_like(logits))


def test_partial_label_loss__dice_is_over_the_annotated_pairs_of_case_and_class() -> None:
    logits, labels = _case(2)
    annotated = _annotated("11010", "10100")
    labels = _hidden(labels, annotated)
    probability, truth = logits.softmax(1), torch.zeros_like(logits).scatter_(1, labels, 1)

    def dice(cases: list[int], c: int) -> Tensor:
        p, t = probability[cases, c], truth[cases, c]
        return (2 * (p * t).sum() + 1e-5) / (p.sum() + t.sum() + 1e-5)

    expected = -(dice([0], 1) + dice([0], 3) + dice([1], 2)) / 3
    torch.testing.assert_close(PartialLabelLoss(weight_ce=0)(logits, labels, annotated), expected)
    annotated = _annotated("11010", "11100")
    batch = PartialLabelLoss(weight_ce=0, batch_dice=True)(logits, labels, annotated)
    torch.testing.assert_close(batch, -(dice([0, 1], 1) + dice([0], 3) + dice([1], 2)) / 3)  # nobody has class 4


def test_partial_label_loss__ignored_voxels_do_not_count() -> None:
    logits, labels = _case(2)
    annotated = _annotated("11010", "11111")
    labels = _hidden(labels, annotated)
    labels[:, :, 0] = CLASSES
    loss = PartialLabelLoss(ignore_label=CLASSES)
    logits.requires_grad_()
    value = loss(logits, labels, annotated)
    torch.testing.assert_close(value, PartialLabelLoss()(logits[:, :, 1:], labels[:, :, 1:], annotated))
    assert _gradient(value, logits)[:, :, 0].abs().max() == 0
    everywhere = loss(logits, torch.full_like(labels, CLASSES), annotated)
    assert torch.isfinite(everywhere) and torch.isfinite(_gradient(everywhere, logits)).all()


def test_partial_label_loss__a_drawn_label_that_is_not_annotated_is_background() -> None:
    logits, labels = _case()
    annotated = _annotated("11010", "11111", "10000")
    loss = PartialLabelLoss()
    assert loss(logits, labels, annotated) == loss(logits, _hidden(labels, annotated), annotated)
    assert loss(logits.half(), labels.to(torch.int16), annotated).dtype == torch.float32


def test_partial_label_loss__refuses_other_shapes() -> None:
    logits, labels = _case(2)
    with pytest.raises(ValueError, match="must fit"):
        PartialLabelLoss()(logits, labels[:, 0], _annotated("11111", "11111"))
    with pytest.raises(ValueError, match="must fit"):
        PartialLabelLoss()(logits, labels, _annotated("1111", "1111"))


@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("ignore", [False, True])
def test_partial_region_loss__what_is_not_annotated_is_left_out(batch_dice: bool, ignore: bool) -> None:
    logits, _ = _case(2, 3)
    regions = _case(2, 3, seed=1)[0] > 0
    target = torch.cat([regions, torch.zeros_like(regions[:, :1])], 1) if ignore else regions
    loss = PartialRegionLoss(batch_dice=batch_dice, use_ignore_label=ignore)
    annotated = _annotated("101", "101")
    logits.requires_grad_()
    value = loss(logits, target, annotated)
    rest = [0, 2, 3] if ignore else [0, 2]
    expected = loss(logits[:, [0, 2]], target[:, rest], _annotated("11", "11"))
    factor = torch.tensor(
        1.0 if not ignore else 1.5
    )  # nnU-Net sums the cross-entropy over regions beside an ignore label
    without_dice = PartialRegionLoss(weight_dice=0, use_ignore_label=ignore)
    cross_entropy = without_dice(logits[:, [0, 2]], target[:, rest], _annotated("11", "11"))
    torch.testing.assert_close(value, expected + (factor - 1) * cross_entropy)
    assert _gradient(value, logits)[:, 1].abs().max() == 0
    nothing = loss(logits, target, _annotated("000", "000"))
    assert nothing.item() == 0 and _gradient(nothing, logits).abs().max() == 0


def test_partial_region_loss__a_case_without_annotation_leaves_the_batch() -> None:
    logits, _ = _case(2, 3)
    target = _case(2, 3, seed=1)[0] > 0
    for batch_dice in (False, True):
        loss = PartialRegionLoss(batch_dice=batch_dice)
        alone = loss(logits[:1], target[:1], _annotated("110"))
        torch.testing.assert_close(loss(logits, target, _annotated("110", "000")), alone)
