from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nnssl.finetuning.distillation_loss import (
    distillation_kl,
    soft_cross_entropy,
    soft_dice,
    teaching_loss,
    temperature_at,
)
from tests.networks.helpers import load_reference

REFERENCE = load_reference("lapn.json")
GIVEN = REFERENCE["distillation"]


def _logits(name: str) -> Tensor:
    """The reference's two voxels of three classes as (1, 3, 2, 1, 1)."""
    return torch.tensor(GIVEN[name], dtype=torch.float64).T.reshape(1, 3, 2, 1, 1)


def _random(seed: int, classes: int = 4) -> Tensor:
    return 3 * torch.randn(2, classes, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", ["1.0", "2.0", "4.0"])
def test_distillation__reference(temperature: str) -> None:
    expected: dict[str, Any] = GIVEN["by_temperature"][temperature]
    student, teacher, t = _logits("student_logits"), _logits("teacher_logits"), float(temperature)
    assert distillation_kl(student, teacher, t).item() == pytest.approx(expected["kl"], abs=1e-12)
    assert teaching_loss(student, teacher, t).item() == pytest.approx(expected["kl_times_T2"], abs=1e-12)
    assert soft_cross_entropy(student, teacher, t).item() == pytest.approx(expected["soft_cross_entropy"], abs=1e-12)


def test_temperature_at__reference() -> None:
    schedule = REFERENCE["temperature_schedule"]
    for epoch, expected in schedule["at"].items():
        assert temperature_at(int(epoch), schedule["epochs"]) == pytest.approx(expected, abs=1e-12)
    assert temperature_at(0, 1) == 1.0 and temperature_at(1, 2, 2.0, 3.0) == 3.0


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 2.5, 4.0])
def test_kl__is_0_for_equal_logits_only(temperature: float, regions: bool) -> None:
    logits = _random(0).requires_grad_()
    equal = distillation_kl(logits, logits.detach(), temperature, regions)
    equal.backward()
    assert equal.item() == pytest.approx(0, abs=1e-12) and logits.grad is not None and logits.grad.abs().max() < 1e-12
    assert distillation_kl(_random(1), _random(0), temperature, regions) > 1e-3


def test_kl__of_regions_is_the_sum_of_binary_ones() -> None:
    student, teacher = _random(0), _random(1)
    total = 0.0
    for region in range(4):
        s, t = (torch.stack([torch.zeros_like(x[:, region]), x[:, region]], 1) for x in (student, teacher))
        total += distillation_kl(s, t, 2.0).item()
    assert distillation_kl(student, teacher, 2.0, regions=True).item() == pytest.approx(total)


def test_teaching_loss__gradients_are_comparable_across_temperatures() -> None:
    sizes = []
    for temperature in (1.0, 4.0, 16.0):
        student = (0.1 * _random(0)).requires_grad_()  # small logits: the softmax is nearly linear
        teaching_loss(student, 0.1 * _random(1), temperature).backward()
        assert student.grad is not None
        sizes.append(student.grad.norm().item())
    assert max(sizes) < 1.1 * min(sizes)


@pytest.mark.parametrize("regions", [False, True])
def test_dice_ce_on_teacher__is_least_at_the_teachers_probabilities(regions: bool) -> None:
    teacher = _random(0)
    assert soft_dice(teacher, teacher, 2.0, regions).item() == pytest.approx(1, abs=1e-9)
    assert soft_dice(_random(1), teacher, 2.0, regions) < 0.9
    student = teacher.clone().requires_grad_()
    loss = teaching_loss(student, teacher, 2.0, regions, dice_ce=True)
    loss.backward()
    assert student.grad is not None and student.grad.abs().max() < 1e-9
    expected = 4 * soft_cross_entropy(teacher, teacher, 2.0, regions) - 1
    assert loss.item() == pytest.approx(expected.item())
    assert teaching_loss(_random(1), teacher, 2.0, regions, dice_ce=True) > loss


def test_teaching_loss__computes_in_full_precision_and_checks_shapes() -> None:
    student, teacher = _random(0).half(), _random(1).half()
    assert teaching_loss(student, teacher, 1.0).dtype == torch.float32
    with pytest.raises(ValueError, match="one shape"):
        teaching_loss(_random(0), _random(1, classes=3), 1.0)
