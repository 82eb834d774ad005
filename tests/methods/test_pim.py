from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nnssl.methods.pimpic.loss import EPS, pair_distances, pim_loss
from nnssl.networks.contrastive import l2_normalise
from tests.networks.helpers import load_reference

REFERENCE = load_reference("pimpic.json")


def double(values: list[list[float]]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def vectors(case: str) -> tuple[Tensor, Tensor]:
    return double(REFERENCE[case]["P"]), double(REFERENCE[case]["S"])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 4e-6)])
def test_pim_loss__code_and_paper(dtype: torch.dtype, tolerance: float) -> None:
    embeddings, overlap = (t.to(dtype) for t in vectors("pim_loss"))
    expected = REFERENCE["pim_loss"]
    whole = pair_distances(embeddings, overlap, include_diagonal=True)
    pairs = pair_distances(embeddings, overlap)
    assert whole.shape == (16,) and pairs.shape == (6,)
    assert abs(pim_loss(whole).item() - expected["code"]) < tolerance
    assert abs(pim_loss(pairs, eps=0).item() - expected["paper"]) < tolerance
    # the default differs from the paper by eps, and from the code by the diagonal, of which each costs -log(1 + eps)
    default = pim_loss(pairs).item()
    assert abs(default - (16 * expected["code"] + 4 * math.log1p(EPS)) / 12) < tolerance
    assert abs(expected["code"] / pim_loss(pairs, eps=0).item() - expected["ratio_code_over_paper"]) < 4e-6


def test_pair_distances__are_those_of_the_reference() -> None:
    distance = pair_distances(*vectors("pim_loss"), include_diagonal=True).view(4, 4)
    torch.testing.assert_close(distance, double(REFERENCE["pim_loss"]["D"]), rtol=0, atol=1e-12)


def test_pim_loss__clamped_pair_has_the_codes_value_and_no_gradient() -> None:
    embeddings, overlap = vectors("pim_loss_clamped")
    expected = REFERENCE["pim_loss_clamped"]
    embeddings.requires_grad_()
    distance = pair_distances(embeddings, overlap, include_diagonal=True)
    assert abs(distance[1].item() - expected["D01"]) < 1e-12
    loss = pim_loss(distance)
    assert abs(loss.item() - expected["code"]) < 1e-9
    loss.backward()
    assert embeddings.grad is not None
    torch.testing.assert_close(embeddings.grad, double(expected["code_grad"]), rtol=0, atol=0)


def test_pim_loss__extension_gives_a_clamped_pair_a_gradient() -> None:
    embeddings, overlap = vectors("pim_loss_clamped")
    embeddings.requires_grad_()
    loss = pim_loss(pair_distances(embeddings, overlap), d_extension=True)
    loss.backward()
    assert embeddings.grad is not None
    assert loss.item() == pytest.approx(-math.log(0.05) + 20 * (1.3 - 0.95), rel=1e-4)
    # descent has to turn the embeddings towards each other: the cosine is too small
    assert ((embeddings - 1e-3 * embeddings.grad).prod(0).sum() > embeddings.prod(0).sum()).item()


def test_pim_loss__extension_is_a_tangent() -> None:
    at = torch.tensor([0.95 - 1e-9, 0.95 + 1e-9, 0.3], dtype=torch.float64, requires_grad=True)
    values = torch.stack([pim_loss(d, d_extension=True) for d in at])
    (slopes,) = torch.autograd.grad(values.sum(), at)
    torch.testing.assert_close(values[0], values[1], rtol=1e-7, atol=0)
    torch.testing.assert_close(slopes[:2], torch.full((2,), 1 / (0.05 + EPS), dtype=torch.float64), rtol=1e-6, atol=0)
    assert values[2] == pim_loss(at[2])


@pytest.mark.parametrize("distance", [1.0, 1.0 - 1e-7, 2.0, 0.0])
@pytest.mark.parametrize("extension", [False, True])
def test_pim_loss__gradient_is_finite_at_the_edges(distance: float, extension: bool) -> None:
    d = torch.tensor([distance], requires_grad=True)
    loss = pim_loss(d, extension)
    loss.backward()
    assert d.grad is not None and loss.isfinite() and d.grad.isfinite()
    assert 0 <= d.grad <= (20 if extension else 1.05e6)


def test_pim_loss__zero_embedding_has_a_finite_gradient() -> None:
    embeddings = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    pim_loss(pair_distances(l2_normalise(embeddings), torch.full((2, 2), 0.5))).backward()
    assert embeddings.grad is not None and embeddings.grad.isfinite().all()


def test_pim_loss__volumes_count_alike_and_order_does_not_matter() -> None:
    torch.manual_seed(0)
    embeddings = l2_normalise(torch.randn(2, 5, 3, dtype=torch.float64))
    overlap = torch.rand(2, 5, 5, dtype=torch.float64)
    overlap = (overlap + overlap.mT) / 2
    both = pim_loss(pair_distances(embeddings, overlap))
    each = [pim_loss(pair_distances(e, s)) for e, s in zip(embeddings, overlap, strict=True)]
    torch.testing.assert_close(both, (each[0] + each[1]) / 2)
    order = torch.randperm(5)
    shuffled = pair_distances(embeddings[:, order], overlap[:, order][:, :, order])
    torch.testing.assert_close(pim_loss(shuffled), both)
