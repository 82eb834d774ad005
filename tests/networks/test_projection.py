from __future__ import annotations

import pytest
import torch

from nnssl.networks.contrastive import DinoHead, batch_statistics_head, l2_normalise, projection_head
from tests.networks.helpers import count_parameters, fill_by_rule, input_by_rule, load_reference


def test_projection_head__has_the_published_size() -> None:
    assert count_parameters(projection_head(1008, 1008, 128)) == 2_167_328


def test_projection_head__gives_the_official_vectors() -> None:
    vector = load_reference("arch_vectors.json")["vox2vec.proj_head(6->6->6->3)"]
    output = l2_normalise(fill_by_rule(projection_head(6, 6, 3))(input_by_rule(vector["input"])))
    expected = torch.tensor(vector["out"], dtype=torch.float64)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-7)


def test_batch_statistics_head__gives_the_official_vectors_in_training_and_evaluation() -> None:
    vector = load_reference("voco.json")["projection_head(6,5,4)"]
    head = fill_by_rule(batch_statistics_head(6, 5, 4))
    expected = torch.tensor(vector["out"], dtype=torch.float64)
    for mode in (True, False):  # there are no running statistics
        output = head.train(mode)(input_by_rule(vector["input"]))
        torch.testing.assert_close(output, expected, rtol=0, atol=1e-9)
    assert not list(head.buffers())


def test_batch_statistics_head__has_the_published_size() -> None:
    assert count_parameters(batch_statistics_head(1152, 2048, 2048)) == 10_754_048


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_l2_normalise__zero_stays_zero_with_a_finite_gradient(dtype: torch.dtype) -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=dtype, requires_grad=True)
    unit = l2_normalise(x)
    expected = torch.tensor([[0.0, 0.0], [0.6, 0.8]], dtype=unit.dtype)
    torch.testing.assert_close(unit, expected)
    unit[1].sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_l2_normalise__gradient_of_a_zero_vector_is_finite() -> None:
    x = torch.zeros(1, 3, requires_grad=True)
    l2_normalise(x).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_dino_head__gives_the_official_vectors() -> None:
    vector = load_reference("alice.json")["arch_vectors"]["alice.DINOHead(6,5,hidden 8,bottleneck 4)"]
    output = fill_by_rule(DinoHead(6, 5, 8, 4))(input_by_rule(vector["input"]))
    torch.testing.assert_close(output, torch.tensor(vector["out"], dtype=torch.float64), rtol=0, atol=1e-9)


def test_dino_head__gives_cosines() -> None:
    head = DinoHead(6, 5, 8, 4)
    output = head(100 * torch.randn(2, 7, 6))
    assert output.shape == (2, 7, 5) and output.abs().max() <= 1 + 1e-6
    published = load_reference("alice.json")["param_counts"]["alice.AliceHead"]["mlp"]
    assert count_parameters(DinoHead(384, 512).mlp) == published
