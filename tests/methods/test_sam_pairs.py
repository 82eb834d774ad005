from __future__ import annotations

from math import prod

import numpy as np
import pytest
import torch

from nnssl.methods.sam.loss import Cells
from nnssl.methods.sam.pairs import Views, cell_positions, cells_of_views, coarse_pairs, fine_pairs
from nnssl.methods.shared.overlapping_crops import to_source
from tests.networks.helpers import load_reference

REFERENCE = load_reference("sam.json")
SIZE, STRIDE = (4, 6, 5), (1, 2, 2)


def _views(**changes: object) -> Views:
    values = {"starts": torch.tensor([[2, 3, 4], [3, 1, 6]]), "scales": torch.tensor([0.9, 1.15]),
              "spacing": torch.tensor([2.0, 1.0, 1.5]), "size": torch.tensor([20, 30, 30])}  # fmt: skip
    return Views(**(values | changes))  # type: ignore[arg-type]


def _cells(views: Views) -> Cells:
    return cells_of_views(torch.randn(2, 3, *SIZE), STRIDE, views)


def _nearest(cells: Cells, query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """By brute force: distance to, and number of, the nearest cell of the other view."""
    half = prod(SIZE)
    distance = torch.cdist(cells.places[query].double(), cells.places.double())
    same = (query[:, None] < half) == (torch.arange(2 * half) < half)
    least, index = distance.masked_fill(same, torch.inf).min(1)
    return least, index


def test_cells_of_views__vectors_places_and_padding() -> None:
    maps, views = torch.randn(2, 3, *SIZE), _views(starts=torch.tensor([[-2, 3, 4], [3, 1, 24]]))
    cells = cells_of_views(maps, STRIDE, views)
    number = prod(SIZE) + (2 * SIZE[1] + 3) * SIZE[2] + 1  # cell (2, 3, 1) of the second view
    torch.testing.assert_close(cells.vectors[number], maps[1, :, 2, 3, 1])
    # its middle is voxel (2, 6.5, 2.5) of the patch
    expected = [(3 + 2.5 * 1.15 - 0.5) * 2, (1 + 7 * 1.15 - 0.5) * 1, (24 + 3 * 1.15 - 0.5) * 1.5]
    torch.testing.assert_close(cells.places[number], torch.tensor(expected))
    inside = ((cells.places / views.spacing > -0.5) & (cells.places / views.spacing < views.size - 0.5)).all(1)
    assert torch.equal(cells.usable, inside)
    first, second = cells.usable.view(2, *SIZE)
    assert not first[:2].any() and first[2:].all()  # begins two slices before the volume
    assert second[:, :, :2].all() and not second[:, :, 3:].any()


def test_coarse_pairs__every_cell_and_the_nearest_of_the_other_view() -> None:
    torch.manual_seed(0)
    views = _views()
    cells = _cells(views)
    pairs = coarse_pairs(cells, SIZE, STRIDE, views, 512, 2.5, 1.0)
    assert torch.equal(pairs.query, torch.arange(2 * prod(SIZE)))
    distance, index = _nearest(cells, pairs.query)
    along_z = (cells.places[pairs.query] - cells.places[index])[:, 0].abs()
    near = (distance < 2.5) & (along_z < 1.0) & cells.usable[pairs.query] & cells.usable[index]
    assert torch.equal(pairs.valid, near) and 20 < near.sum() < 200
    found = (cells.places[pairs.query] - cells.places[pairs.positive]).norm(dim=1)
    torch.testing.assert_close(found[near], distance[near].float())


def test_coarse_pairs__reference_positives() -> None:
    """The grids of the reference vector, all of whose cells have a positive."""
    spacing = torch.tensor([8.0, 32.0, 32.0])
    starts = torch.tensor([[0, 0, 0], [3, 4, 2]]) / spacing
    views = Views(starts, torch.ones(2), spacing, torch.tensor([9, 9, 9]))
    cells = cells_of_views(torch.zeros(2, 3, 1, 2, 2), (1, 1, 1), views)
    grid = torch.tensor(REFERENCE["coarse_loss"]["grid_mm_yxz"])[:2].flatten(2).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(cells.places, grid[:, [2, 0, 1]])
    pairs = coarse_pairs(cells, (1, 2, 2), (1, 1, 1), views, 512, 25.0, 6.0)
    assert pairs.valid.all() and pairs.positive.tolist() == [4, 5, 6, 7, 0, 1, 2, 3]


def test_coarse_pairs__at_most_so_many_and_valid_ones_first() -> None:
    views = _views()
    cells = _cells(views)
    everything = coarse_pairs(cells, SIZE, STRIDE, views, 512, 2.5, 2.5)
    per_view = everything.valid.view(2, -1).sum(1)
    drawn = coarse_pairs(cells, SIZE, STRIDE, views, 20, 2.5, 2.5, torch.Generator().manual_seed(0))
    assert len(drawn.query) == 40 and drawn.valid.view(2, -1).sum(1).tolist() == per_view.clamp(max=20).tolist()
    assert len(drawn.query.unique()) == 40
    table = dict(zip(everything.query.tolist(), everything.positive.tolist(), strict=True))
    assert [table[q] for q in drawn.query.tolist()] == drawn.positive.tolist()


def test_fine_pairs__cells_that_hold_the_points_and_the_nearest_of_the_other_view() -> None:
    torch.manual_seed(0)
    views = _views()
    cells = _cells(views)
    points = torch.rand(300, 2, 3) * (torch.tensor(SIZE) * torch.tensor(STRIDE)) - 0.5
    pairs = fine_pairs(points, cells, SIZE, STRIDE, views, 100, 1.3, torch.Generator().manual_seed(0))
    assert pairs.query.shape == (200,) and (pairs.query[:100] < prod(SIZE)).all()
    assert (pairs.query[100:] >= prod(SIZE)).all()
    distance, index = _nearest(cells, pairs.query)
    assert torch.equal(pairs.valid, (distance < 1.3) & cells.usable[index])
    assert pairs.valid.sum() > 20 and torch.equal(pairs.positive[pairs.valid], index[pairs.valid])
    single = fine_pairs(torch.tensor([[[2.4, 7.6, -0.5], [0.0, 0.0, 9.5]]]), cells, SIZE, STRIDE, views, 100, 1.3)
    assert single.query.tolist() == [(2 * 6 + 4) * 5, prod(SIZE) + 4]


def test_fine_pairs__no_points() -> None:
    views = _views()
    pairs = fine_pairs(torch.zeros(0, 2, 3), _cells(views), SIZE, STRIDE, views, 100, 2.0)
    assert [len(column) for column in pairs] == [0, 0, 0]


@pytest.mark.parametrize("within", [0.3, 3.0])
def test_fine_pairs__a_shift_of_whole_cells_pairs_each_cell_with_itself(within: float) -> None:
    views = _views(starts=torch.tensor([[2, 3, 4], [3, 7, 6]]), scales=torch.ones(2))
    cells = _cells(views)
    points = torch.tensor([[[1.0, 4.0, 2.0], [0.0, 0.0, 0.0]]])
    pairs = fine_pairs(points, cells, SIZE, STRIDE, views, 100, within)
    assert pairs.valid.all()
    assert torch.equal(cells.places[pairs.query], cells.places[pairs.positive])


def test_cell_positions__are_the_means_of_their_voxels() -> None:
    starts, scales = torch.tensor([[3, -2, 5], [0, 1, 2]]), torch.tensor([1.1, 0.9])
    spacing = torch.tensor([[2.0, 1.0, 0.5], [1.0, 1.0, 1.0]])
    voxels = cell_positions((4, 8, 6), (1, 1, 1), starts, scales, spacing)
    assert voxels.shape == (2, 4, 8, 6, 3) and voxels.dtype == torch.float32
    index = np.array([3, 7, 2])
    expected = to_source(index, starts[0].numpy(), np.float64(1.1)) * spacing[0].numpy()
    np.testing.assert_allclose(voxels[0, 3, 7, 2].numpy(), expected, rtol=1e-6)
    cells = cell_positions((2, 4, 2), (2, 2, 3), starts, scales, spacing)
    mean = torch.nn.functional.avg_pool3d(voxels.movedim(-1, 1), (2, 2, 3)).movedim(1, -1)
    torch.testing.assert_close(cells, mean)
