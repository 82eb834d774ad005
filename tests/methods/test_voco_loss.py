from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nnssl.methods.voco.loss import (
    base_regulariser,
    code_terms,
    cosines,
    dead_fraction,
    paper_prediction,
    paper_regulariser,
    paper_terms,
    prediction_loss,
)
from tests.networks.helpers import load_reference

REFERENCE = load_reference("voco.json")
TOLERANCE = 1e-9
COUNT_TOLERANCE = 1e-7  # where the code adds its eps to an integer count in float32


def _double(values: Any, gradient: bool = False) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=gradient)


def test_prediction_loss__as_the_code() -> None:
    vector = REFERENCE["prediction_loss"]
    positive, negative = prediction_loss(_double(vector["labels"]), _double(vector["logits"]))
    assert abs(positive.item() - vector["code_pos"]) < TOLERANCE
    assert abs(positive.item() - vector["independent_pos"]) < TOLERANCE
    assert abs(negative.item() - vector["independent_neg"]) < TOLERANCE
    assert abs(negative.item() - vector["code_neg"]) < COUNT_TOLERANCE
    assert abs((positive + negative).item() - vector["code_total"]) < COUNT_TOLERANCE


def test_prediction_loss__in_float32() -> None:
    vector = REFERENCE["prediction_loss"]
    positive, negative = prediction_loss(torch.tensor(vector["labels"]), torch.tensor(vector["logits"]))
    assert (positive + negative).item() == pytest.approx(vector["code_total"], rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_prediction_loss__distance_of_one_is_finite_with_a_finite_gradient(dtype: torch.dtype) -> None:
    vector = REFERENCE["prediction_loss_singular"]
    labels = torch.tensor(vector["labels"], dtype=dtype)
    logits = torch.tensor(vector["logits"], dtype=dtype, requires_grad=True)
    positive, negative = prediction_loss(labels, logits)
    assert positive.item() == pytest.approx(vector["code_pos"], rel=1e-5 if dtype == torch.float32 else 1e-9)
    assert abs(negative.item() - vector["code_neg"]) < 2e-7
    (positive + negative).backward()
    assert logits.grad is not None and logits.grad.isfinite().all()
    assert -1.1e6 < logits.grad[0, 0] < -0.9e6  # towards the label


def test_prediction_loss__a_cosine_that_rounding_puts_above_one_is_harmless() -> None:
    labels = torch.tensor([[1.0, 0.0, 0.0]])
    logits = torch.tensor([[1.0 + 2e-6, 1.0 + 2e-6, 0.0]], requires_grad=True)
    positive, negative = prediction_loss(labels, logits)
    (positive + negative).backward()
    assert positive.isfinite() and negative.isfinite()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_prediction_loss__volumes_are_averaged() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.softmax(torch.randn(3, 2, 5, generator=generator, dtype=torch.float64), -1)
    labels[:, :, 0] = 0
    logits = torch.rand(3, 2, 5, generator=generator, dtype=torch.float64)
    together = prediction_loss(labels, logits)
    alone = [prediction_loss(labels[i], logits[i]) for i in range(3)]
    for part in range(2):
        assert together[part].item() == pytest.approx(sum(a[part].item() for a in alone) / 3, abs=1e-12)


def test_paper_prediction__as_equation_3() -> None:
    vector = REFERENCE["prediction_loss"]
    terms = paper_prediction(_double(vector["labels"]), _double(vector["logits"]))
    assert abs(terms.mean().item() - vector["paper_eq3_mean_over_bases_and_crops"]) < TOLERANCE
    torch.testing.assert_close(terms.mean(1), _double(vector["per_crop_paper"]), rtol=0, atol=TOLERANCE)


def test_paper_prediction__is_finite_where_the_paper_is_not() -> None:
    logits = torch.tensor([[0.0, 1.0], [-1.0, 0.5]], requires_grad=True)  # d = 1 and d = 2
    terms = paper_prediction(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), logits)
    assert terms[:, 0].tolist() == pytest.approx([13.8155, 13.8155], abs=1e-3)
    terms.sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_cosines__as_the_code_assigns() -> None:
    vector = REFERENCE["assign"]
    similarity = cosines(_double(vector["feats"]), _double(vector["bases"]))
    torch.testing.assert_close(similarity, _double(vector["cosine"]), rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(similarity.relu(), _double(vector["code_relu"]), rtol=0, atol=TOLERANCE)


def test_cosines__permuting_crops_permutes_logits() -> None:
    generator = torch.Generator().manual_seed(1)
    crops, bases = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (5, 6))
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(cosines(crops[order], bases), cosines(crops, bases)[order], rtol=0, atol=1e-15)


def test_base_regulariser__as_the_code_and_the_last_base_gets_no_gradient() -> None:
    vector = REFERENCE["regularization"]
    bases = _double(vector["bases"], gradient=True)
    value = base_regulariser(bases)
    assert abs(value.item() - vector["code"]) < TOLERANCE
    value.backward()
    torch.testing.assert_close(bases.grad, _double(vector["code_grad_wrt_bases"]), rtol=0, atol=TOLERANCE)
    assert bases.grad is not None and bases.grad[-1].tolist() == [0, 0, 0]


def test_base_regulariser__without_detaching_both_bases_of_a_pair_learn() -> None:
    vector = REFERENCE["regularization"]
    bases = _double(vector["bases"], gradient=True)
    value = base_regulariser(bases, detach=False)
    assert abs(value.item() - vector["code"]) < TOLERANCE
    value.backward()
    assert bases.grad is not None and bases.grad[1].abs().max() > 0.01
    torch.testing.assert_close(bases.grad[0], _double(vector["code_grad_wrt_bases"])[0], rtol=0, atol=TOLERANCE)


def test_paper_regulariser__over_unordered_pairs() -> None:
    vector = REFERENCE["regularization"]
    value = paper_regulariser(_double(vector["bases"])).item()
    assert abs(value - vector["paper_unordered_pairs"]) < TOLERANCE
    assert abs(2 * value - vector["paper_ordered_pairs_literal"]) < TOLERANCE


@pytest.mark.parametrize("regulariser", [base_regulariser, paper_regulariser])
def test_regularisers__orthogonal_bases_give_zero_and_one_base_none(regulariser: Any) -> None:
    assert regulariser(torch.eye(5, 7)) == 0
    single = torch.randn(3, 1, 4, requires_grad=True)
    value = regulariser(single)
    value.backward()
    assert value == 0 and single.grad is not None


def _full_head() -> tuple[list[Tensor], Tensor]:
    vector = REFERENCE["full_head"]
    names = ("student_crops", "student_bases", "teacher_crops", "teacher_bases")
    vectors = [_double([vector[name]], gradient=name.startswith("student")) for name in names]
    return vectors, _double(vector["labels"])


def test_code_terms__as_the_whole_official_head() -> None:
    vector = REFERENCE["full_head"]
    vectors, labels = _full_head()
    terms = code_terms(vectors[0], vectors[1], vectors[2], vectors[3], labels)
    assert abs(terms.positive.item() - vector["code_pos"]) < TOLERANCE
    assert abs(terms.negative.item() - vector["code_neg"]) < COUNT_TOLERANCE
    assert abs(terms.regulariser.item() - vector["code_reg"]) < TOLERANCE
    total = terms.positive + terms.negative + terms.regulariser
    assert abs(total.item() - vector["code_total"]) < COUNT_TOLERANCE
    total.backward()
    student_crops, student_bases = vectors[:2]
    for tensor in (student_crops, student_bases):
        assert tensor.grad is not None and tensor.grad.isfinite().all()
    assert student_bases.grad is not None and student_bases.grad.abs().max() > 0


def test_paper_terms__parts_add_up_and_the_bases_are_detached_in_the_prediction() -> None:
    vector = REFERENCE["full_head"]
    (crops, bases, _, _), labels = _full_head()
    terms = paper_terms(crops, bases, labels)
    assert abs(terms.regulariser.item() - vector["paper_reg_unordered"]) < TOLERANCE
    whole = paper_prediction(labels, cosines(crops, bases)).mean()
    assert abs((terms.positive + terms.negative - whole).item()) < 1e-12
    (terms.positive + terms.negative).backward()
    assert bases.grad is None and crops.grad is not None


def test_dead_fraction__counts_positive_labels_without_attraction() -> None:
    labels = torch.tensor([[0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    logits = torch.tensor([[0.0, 0.3, 0.0, 0.9], [-0.2, 0.0, 0.0, 0.0]])
    assert dead_fraction(labels, logits).item() == pytest.approx(2 / 3)
    assert dead_fraction(torch.zeros(1, 2), torch.zeros(1, 2)) == 0


def test_code_terms__a_dead_pair_gets_no_gradient_and_is_counted() -> None:
    base = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    crop = torch.tensor([[[-1.0, 0.1]]], requires_grad=True)
    labels = torch.tensor([[[1.0, 0.0]]])
    terms = code_terms(crop, base, crop.detach(), base, labels)
    terms.positive.backward()
    assert terms.dead_pairs == 1 and terms.positive.item() == pytest.approx(13.8155, abs=1e-3)
    assert crop.grad is not None and crop.grad.abs().max() == 0


@pytest.mark.parametrize("zero", ["crops", "bases", "all"])
def test_terms__zero_vectors_have_finite_values_and_gradients(zero: str) -> None:
    crops = torch.randn(2, 3, 4) * (zero == "bases")
    bases = torch.randn(2, 5, 4) * (zero == "crops")
    crops.requires_grad_()
    bases.requires_grad_()
    labels = torch.zeros(2, 3, 5)
    labels[:, :, :2] = 0.5
    for terms in (code_terms(crops, bases, crops.detach(), bases.detach(), labels), paper_terms(crops, bases, labels)):
        assert all(term.isfinite() for term in terms)
        crops.grad = bases.grad = None
        (terms.positive + terms.negative + terms.regulariser).backward()
        for tensor in (crops, bases):
            assert tensor.grad is not None and tensor.grad.isfinite().all()


def test_terms__are_float32_under_autocast() -> None:
    crops, bases = torch.randn(1, 2, 64, dtype=torch.bfloat16), torch.randn(1, 4, 64, dtype=torch.bfloat16)
    labels = torch.tensor([[[0.7, 0.3, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]])
    plain = code_terms(crops.float(), bases.float(), crops.float(), bases.float(), labels)
    with torch.autocast("cpu", torch.bfloat16):
        terms = code_terms(crops, bases, crops, bases, labels)
    for mine, expected in zip(terms, plain, strict=True):
        assert mine.dtype == torch.float32
        torch.testing.assert_close(mine, expected, rtol=0, atol=0)
