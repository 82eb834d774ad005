from __future__ import annotations

import pytest
import torch

from nnssl.methods.alice.loss import (
    Attention,
    CentredCrossEntropy,
    CodeCasa,
    PaperCasa,
    attention_weights,
    cosine_distance,
    teacher_temperature,
)
from tests.networks.helpers import count_parameters, fill_by_rule, input_by_rule, load_reference

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


def test_attention_weights__equal_the_reference_and_rows_sum_to_one() -> None:
    case = REFERENCE["casa_attention"]
    q, k, v = (torch.tensor(case[name], dtype=torch.float64) for name in "qkv")
    weights = attention_weights(q, k)
    torch.testing.assert_close(weights, torch.tensor(case["attention"], dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(weights @ v, torch.tensor(case["output"], dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, dtype=torch.float64))


def test_code_casa__equals_the_official_module() -> None:
    case = REFERENCE["arch_vectors"]["alice.CASA(8,16,2,4,4)"]
    casa = fill_by_rule(CodeCasa(8, 16, heads=2, head_width=4)).eval()
    query = input_by_rule([1, 3, 8])
    for context, name in ((input_by_rule([1, 5, 8]), "student"), (2 * input_by_rule([1, 6, 8]), "teacher")):
        expected = torch.tensor(case[name], dtype=torch.float64)
        torch.testing.assert_close(casa(query, context)[0], expected, rtol=0, atol=1e-9)


def test_code_casa__has_the_shapes_and_the_used_parameters_of_the_official_module() -> None:
    shapes = REFERENCE["casa_shapes"]
    casa = CodeCasa(512, shapes["d_inner"], shapes["heads"], shapes["d_k"], shapes["dropout"])
    output = casa(torch.randn(shapes["query"]), torch.randn(shapes["key_value"]))
    assert [list(output.shape)] * 2 == shapes["output"]
    assert count_parameters(casa) == REFERENCE["param_counts"]["alice.CASA(512,2048,8,64,64)"]["used"]


def test_paper_casa__does_not_add_the_query() -> None:
    torch.manual_seed(0)
    casa, query = PaperCasa(6, 4), torch.randn(2, 3, 4)
    same = torch.randn(2, 1, 6).expand(2, 5, 6)  # whoever asks hears the same
    output = casa(query, same)
    assert output.shape == (2, 3, 6)
    torch.testing.assert_close(output, output[:, :1].expand_as(output))
    assert not torch.allclose(casa(query, torch.randn(2, 5, 6)), output)
    official = CodeCasa(6, 8, heads=1, head_width=6).eval()
    wide = official(torch.randn(2, 3, 6), same)
    assert not torch.allclose(wide, wide[:, :1].expand_as(wide))


def test_attention__of_several_heads_is_each_heads_own() -> None:
    torch.manual_seed(0)
    attention, query, context = Attention(8, heads=2), torch.randn(1, 3, 8), torch.randn(1, 5, 8)
    q, k, v = attention.query(query), attention.key(context), attention.value(context)
    parts = [attention_weights(q[..., h], k[..., h]) @ v[..., h] for h in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(attention(query, context), torch.cat(parts, dim=-1))
