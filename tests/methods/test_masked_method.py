from __future__ import annotations

from math import ceil

import numpy as np
import pytest
import torch

from nnssl.methods.shared.hidden_blocks import blocks_inside, draw_mask, hidden_count, visible_blocks
from nnssl.methods.shared.masked_method import from_blocks, masked_mse, normalised_blocks, to_blocks
from nnssl.networks.pyramid import spread
from tests.networks.helpers import load_reference


@pytest.mark.parametrize("grid", [(1, 2, 2), (3, 5, 7), (4, 12, 12), (1, 1, 3)])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.6, 0.75])
def test_draw_mask__hides_exactly_so_many_blocks(grid: tuple[int, int, int], ratio: float) -> None:
    blocks = int(np.prod(grid))
    masks = [draw_mask(np.random.default_rng(seed), grid, ratio) for seed in range(5)]
    for mask in masks:
        assert mask.shape == grid and mask.dtype == bool
        assert mask.mean() == hidden_count(blocks, ratio) / blocks
    assert abs(hidden_count(blocks, ratio) - ceil(ratio * blocks)) <= (ratio == 0.6)  # whose float is not 3/5


def test_hidden_count__of_the_papers_crop() -> None:
    assert "432 masked" in load_reference("alice.json")["mask"]["paper_shape_example"]
    assert hidden_count(12 * 12 * 4, 0.75) == 432
    assert hidden_count(5, 0.6) == 3 and hidden_count(10, 0.7) == 7 and hidden_count(5, 0.75) == 4


def test_draw_mask__is_a_function_of_the_generator_and_every_block_is_hidden_as_often() -> None:
    masks = [draw_mask(np.random.default_rng(seed), (2, 3, 4), 0.75) for seed in range(400)]
    assert np.array_equal(masks[7], draw_mask(np.random.default_rng(7), (2, 3, 4), 0.75))
    assert np.abs(np.mean(masks, axis=0) - 0.75).max() < 0.1


def test_to_blocks__rows_hold_whole_blocks_and_come_back() -> None:
    volumes = torch.arange(2 * 3 * 4 * 6 * 8).view(2, 3, 4, 6, 8).float()
    rows = to_blocks(volumes, (2, 3, 4))
    assert rows.shape == (2, 8, 2 * 3 * 4 * 3)
    cut = volumes[1, :, 2:4, 0:3, 4:8]  # block (1, 0, 1), the sixth
    assert torch.equal(rows[1, 5].sort().values, cut.flatten().sort().values)
    assert torch.equal(from_blocks(rows, (2, 3, 4), (4, 6, 8)), volumes)


def test_spread__masked_voxels_are_whole_blocks() -> None:
    hidden = torch.from_numpy(np.stack([draw_mask(np.random.default_rng(s), (2, 2, 2), 0.75) for s in range(2)]))
    voxels = spread(hidden, (4, 6, 8))
    assert voxels.shape == (2, 1, 4, 6, 8)
    rows = to_blocks(voxels.float(), (2, 3, 4))
    assert torch.equal(rows, hidden.flatten(1)[..., None].float().expand_as(rows))


@pytest.mark.parametrize("ratio", [0.0, 0.75])
def test_visible_blocks__are_those_that_are_not_hidden(ratio: float) -> None:
    hidden = torch.from_numpy(np.stack([draw_mask(np.random.default_rng(s), (2, 3, 2), ratio) for s in range(3)]))
    visible = visible_blocks(hidden, ratio)
    expected = [(~mask.flatten()).nonzero().flatten().tolist() for mask in hidden]
    assert visible.tolist() == expected


def test_visible_blocks__of_columns() -> None:
    drawn = [draw_mask(np.random.default_rng(seed), (1, 3, 3), 0.75) for seed in range(2)]
    columns = np.stack([np.broadcast_to(mask, (4, 3, 3)) for mask in drawn])
    visible = visible_blocks(torch.from_numpy(columns), 0.75, layers=4)
    assert visible.tolist() == [np.flatnonzero(~mask).tolist() for mask in columns] and visible.shape == (2, 8)


def test_blocks_inside__equals_counting_voxels() -> None:
    start, size, patch, block = (-5, 3, 6), (9, 8, 30), (16, 8, 12), (4, 2, 6)
    inside = np.zeros(patch, dtype=bool)
    inside[tuple(slice(max(-s, 0), max(n - s, 0)) for s, n in zip(start, size, strict=True))] = True
    counted = to_blocks(torch.from_numpy(inside)[None, None].float(), block)[0].sum(-1) > 0
    assert np.array_equal(blocks_inside(start, size, patch, block).ravel(), counted.numpy())


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
