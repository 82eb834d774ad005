from __future__ import annotations

import math
from typing import Literal

import pytest
import torch

from nnssl.methods.pimpic.loss import pic_loss
from nnssl.networks.contrastive import l2_normalise
from tests.networks.helpers import load_reference

REFERENCE = load_reference("pimpic.json")
OBJECTIVES: tuple[Literal["code", "paper"], ...] = ("code", "paper")


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_pic_loss__code_and_paper(temperature: float, dtype: torch.dtype, tolerance: float) -> None:
    rows = torch.tensor(REFERENCE["pic_loss"]["Q"], dtype=dtype)
    expected = REFERENCE["pic_loss"]["by_tau"][str(temperature)]
    assert abs(pic_loss(rows, temperature).item() - expected["code"]) < tolerance
    assert abs(pic_loss(rows, temperature, "paper").item() - expected["paper_eq2"]) < tolerance


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_pic_loss__chance_level(objective: Literal["code", "paper"]) -> None:
    same = torch.ones(3, 4, 2, dtype=torch.float64) / math.sqrt(2)
    expected = REFERENCE["pic_loss_chance_level"][objective]
    assert abs(pic_loss(same, objective=objective).item() - expected) < 1e-9


@pytest.mark.parametrize(("objective", "floor"), [("code", 0.23954), ("paper", 0.7338)])
def test_pic_loss__floor_is_far_from_zero(objective: Literal["code", "paper"], floor: float) -> None:
    torch.manual_seed(0)
    rows = torch.randn(8, 4, 3, requires_grad=True)
    optimiser = torch.optim.Adam([rows], 0.05)
    for _ in range(400):
        optimiser.zero_grad()
        loss = pic_loss(l2_normalise(rows), objective=objective)
        loss.backward()
        optimiser.step()
    assert loss.item() == pytest.approx(floor, abs=1e-3)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_pic_loss__does_not_depend_on_which_patch_is_first(objective: Literal["code", "paper"]) -> None:
    torch.manual_seed(0)
    rows = l2_normalise(torch.randn(5, 4, 3, dtype=torch.float64))
    exchanged = rows[:, [1, 0, 3, 2]]
    torch.testing.assert_close(pic_loss(exchanged, objective=objective), pic_loss(rows, objective=objective))


def test_pic_loss__without_a_pair_is_an_exact_zero_on_the_graph() -> None:
    features = torch.randn(3, 2, requires_grad=True)
    rows = features[:0].reshape(0, 4, 2)
    for weights in (None, torch.empty(0)):
        features.grad = None
        loss = pic_loss(rows, weights=weights)
        loss.backward()
        assert loss.item() == 0 and features.grad is not None and not features.grad.any()


def test_pic_loss__weights() -> None:
    torch.manual_seed(0)
    rows = l2_normalise(torch.randn(3, 4, 3, dtype=torch.float64))
    parts = torch.stack([pic_loss(row[None]) for row in rows])
    torch.testing.assert_close(pic_loss(rows), parts.mean())
    weights = torch.tensor([0.5, 0.0, 0.25], dtype=torch.float64)
    torch.testing.assert_close(pic_loss(rows, weights=weights), (weights * parts).sum())


def test_pic_loss__zero_rows_have_a_finite_gradient() -> None:
    rows = torch.randn(2, 4, 3)
    rows[:, 2:] = 0  # what an empty rest could become
    rows.requires_grad_()
    loss = pic_loss(l2_normalise(rows))
    loss.backward()
    assert loss.isfinite() and rows.grad is not None and rows.grad.isfinite().all()
