from __future__ import annotations

import pytest
import torch

from nnssl.methods.alice.loss import CentredCrossEntropy, cosine_distance, teacher_temperature
from tests.networks.helpers import load_reference

REFERENCE = load_reference("alice.json")
LOSSES = REFERENCE["losses"]


def _vectors(name: str) -> torch.Tensor:
    return torch.tensor(LOSSES[name], dtype=torch.float64)


def _pairs() -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """What is compared: crossed between the two volumes, and within each volume."""
    crossed = _vectors("student_cls"), _vectors("teacher_cls").flip(0)
    return crossed, (_vectors("student_tokens"), _vectors("teacher_tokens"))


def test_cosine_distance__equals_the_paper() -> None:
    across, within = (2 * cosine_distance(*pair).item() for pair in _pairs())
    assert across == pytest.approx(LOSSES["paper"]["l_dv_byol"], abs=1e-9)
    assert within == pytest.approx(LOSSES["paper"]["l_st_byol"], abs=1e-9)


def test_centred_cross_entropy__equals_the_code_and_so_do_its_centres() -> None:
    temperature = LOSSES["temperatures"]["teacher"]
    for (student, target), value, centre in zip(_pairs(), ("cls", "patch"), ("center", "center2"), strict=True):
        loss = CentredCrossEntropy(3).double()
        assert loss(student, target, temperature).item() == pytest.approx(LOSSES["code"][value], abs=1e-9)
        loss.follow(target)
        expected = torch.tensor(LOSSES["after"][centre], dtype=torch.float64).flatten()
        torch.testing.assert_close(loss.centre, expected, rtol=0, atol=1e-12)
    assert list(loss.state_dict()) == ["centre"]


def test_teacher_temperature__equals_the_code() -> None:
    case = REFERENCE["teacher_temperature"]
    assert [teacher_temperature(e) for e in case["epochs"]] == pytest.approx(case["values"], abs=1e-12)
    assert teacher_temperature(500) == 0.01


def test_cosine_distance__range_zero_vectors_and_targets_without_gradient() -> None:
    x, y = (torch.randn(4, 3, 5, requires_grad=True) for _ in range(2))
    assert cosine_distance(x, x).item() == pytest.approx(0, abs=1e-6)
    assert cosine_distance(x, -3 * x).item() == pytest.approx(4, abs=1e-6)
    cosine_distance(x, y).backward()
    assert y.grad is None and x.grad is not None and x.grad.abs().sum() > 0
    zero = torch.zeros(1, 5, requires_grad=True)
    loss = cosine_distance(zero, torch.ones(1, 5))
    loss.backward()
    assert loss.item() == 2 and zero.grad is not None and zero.grad.isfinite().all()


def test_centred_cross_entropy__half_precision_and_autocast_do_not_overflow() -> None:
    loss = CentredCrossEntropy(8)
    student, target = (torch.randn(3, 8, dtype=torch.float16) * 100 for _ in range(2))
    student.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, target, 0.008)
    value.backward()
    assert value.dtype == torch.float32 and value.isfinite()
    assert student.grad is not None and student.grad.isfinite().all()
