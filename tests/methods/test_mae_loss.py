from __future__ import annotations

import pytest
import torch

from nnssl.methods.shared.masked_method import masked_mse, normalised_blocks
from tests.networks.helpers import load_reference

REFERENCE = load_reference("alice.json")


def _rows(values: object) -> torch.Tensor:
    """Crops as blocks of one voxel: (B, N, 1)."""
    return torch.tensor(values, dtype=torch.float64).flatten(1)[..., None]


def test_normalised_blocks__equals_the_reference() -> None:
    case = REFERENCE["mae_normalised_target"]
    patch = torch.tensor(case["patch"], dtype=torch.float64)
    torch.testing.assert_close(
        normalised_blocks(patch), torch.tensor(case["normalised"], dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_normalised_blocks__of_one_value_are_zero_with_a_finite_gradient() -> None:
    blocks = torch.full((1, 2, 8), 3.0, requires_grad=True)
    normalised = normalised_blocks(blocks)
    (gradient,) = torch.autograd.grad(normalised.square().sum() + normalised.sum(), blocks)
    assert normalised.abs().max() == 0 and gradient.isfinite().all()


def test_masked_mse__equals_the_reference() -> None:
    case = REFERENCE["masked_mse_hand"]
    target, prediction = _rows([case["target"]]), _rows([case["prediction"]])
    mask = torch.tensor([case["mask"]]).bool()
    assert masked_mse(prediction, target, mask).item() == pytest.approx(case["paper"], abs=1e-12)
    assert masked_mse(prediction, target, torch.ones_like(mask)).item() == pytest.approx(case["all_voxels"], abs=1e-12)


def test_masked_mse__equals_paper_and_code_on_two_crops() -> None:
    case = REFERENCE["losses"]
    target, prediction, mask = (_rows(case[k]) for k in ("images", "reconstruction", "mask"))
    hidden = mask[..., 0].bool()
    paper = masked_mse(prediction, target, hidden).sum().item()
    assert paper == pytest.approx(case["paper"]["l_r_masked_mse_sum_of_two"], abs=1e-9)
    code = 5 * masked_mse(prediction, target, torch.ones_like(hidden)).mean().item()
    assert code == pytest.approx(case["code"]["recon"], abs=1e-9)


def test_masked_mse__visible_predictions_have_no_gradient() -> None:
    prediction = torch.randn(2, 5, 4, requires_grad=True)
    hidden = torch.tensor([[True, False, True, False, False], [False, False, False, True, True]])
    masked_mse(prediction, torch.randn(2, 5, 4), hidden).sum().backward()
    assert prediction.grad is not None
    assert torch.equal(prediction.grad.abs().sum(-1) > 0, hidden)


def test_masked_mse__nothing_hidden_is_an_attached_zero() -> None:
    prediction = torch.randn(2, 5, 4, requires_grad=True)
    error = masked_mse(prediction, torch.randn(2, 5, 4), torch.zeros(2, 5, dtype=torch.bool))
    error.sum().backward()
    assert error.tolist() == [0, 0] and prediction.grad is not None and prediction.grad.abs().max() == 0


def test_masked_mse__half_precision_is_compared_in_float32() -> None:
    prediction = torch.full((1, 1, 8), 300.0, dtype=torch.float16)
    assert masked_mse(prediction, torch.zeros(1, 1, 8), torch.ones(1, 1).bool()).item() == 90_000
