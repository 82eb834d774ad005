from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nnssl.networks.build import backbone_of
from nnssl.networks.fpn_unet import FPN3d
from nnssl.networks.lapn_unet import LapnPyramid
from nnssl.networks.pimpic_unet import Pimpic3d
from nnssl.networks.pyramid import BlockMask, FeaturePyramid, spread
from nnssl.networks.recompute import recompute_activations
from nnssl.networks.sparse import HiddenCells, sparse_levels, visible_norm
from tests.networks.helpers import unet_configuration

SIZE, GRID = (16, 16, 24), (4, 4, 6)  # blocks of 4 voxels
STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
NETWORKS: dict[str, Callable[[], FeaturePyramid]] = {
    "plain": lambda: backbone_of(unet_configuration("PlainConvUNet", STRIDES, [3, 4, 5]), "encoder"),
    "residual": lambda: backbone_of(unet_configuration("ResidualEncoderUNet", STRIDES, [3, 4, 5]), "encoder"),
    "fpn": lambda: FPN3d(1, 2, 4, levels="encoder"),  # a coarsest cell covers eight blocks
    "pimpic": lambda: Pimpic3d(1, 2, 3, levels="encoder"),
    "lapn": lambda: LapnPyramid(1, (2, 3, 4), 2, 2, levels="encoder"),
}


def _mask(grid: tuple[int, int, int] = GRID, hidden: float = 0.75) -> BlockMask:
    blocks = grid[0] * grid[1] * grid[2]
    kept = torch.stack([torch.randperm(blocks)[: round(blocks * (1 - hidden))].sort().values for _ in range(2)])
    return BlockMask(torch.ones(2, blocks, dtype=torch.bool).scatter(1, kept, False).view(2, *grid), kept)


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> FeaturePyramid:
    torch.manual_seed(0)
    return NETWORKS[request.param]()


def test_sparse_levels__hidden_voxels_are_never_read(network: FeaturePyramid) -> None:
    x, mask, state = torch.randn(2, 1, *SIZE), _mask(), list(network.state_dict())
    hidden = spread(mask.hidden, SIZE)
    levels = sparse_levels(network.eval(), x, mask)
    for value in (float("nan"), 1e6):
        others = sparse_levels(network, x.masked_fill(hidden, value), mask)
        assert all(torch.equal(a, b) for a, b in zip(levels, others, strict=True))
    for level in levels:
        gone = HiddenCells(mask.hidden)(level.shape[2:]).expand_as(level)
        assert not level[gone].any() and level[~gone].any()
    assert list(network.state_dict()) == state and all("forward" not in vars(m) for m in network.modules())


def test_sparse_levels__gradients_come_from_visible_voxels_and_reach_all_weights(network: FeaturePyramid) -> None:
    x, mask = torch.randn(2, 1, *SIZE).requires_grad_(), _mask()
    levels = sparse_levels(network, x, mask)
    sum(level.square().sum() for level in levels).backward()  # type: ignore[union-attr]
    assert x.grad is not None and not x.grad[spread(mask.hidden, SIZE)].any() and x.grad.isfinite().all()
    assert x.grad.any() and all(p.grad is not None for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize("training", [False, True])
def test_sparse_levels__with_nothing_hidden_it_is_the_dense_network(network: FeaturePyramid, training: bool) -> None:
    x, mask = torch.randn(2, 1, *SIZE, dtype=torch.float64), _mask(hidden=0.0)
    network.double()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    dense = network.train(training)(x)
    after = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.load_state_dict(before)
    for one, two in zip(sparse_levels(network, x, mask), dense, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-9)
    for name, tensor in network.state_dict().items():  # running statistics too
        torch.testing.assert_close(tensor, after[name], rtol=0, atol=1e-9)


@pytest.mark.parametrize("batch", [False, True], ids=["instance", "batch"])
def test_visible_norm__statistics_are_those_of_a_loop_over_visible_voxels(batch: bool) -> None:
    torch.manual_seed(0)
    cells = HiddenCells(_mask().hidden)
    layer: nn.BatchNorm3d | nn.InstanceNorm3d = nn.BatchNorm3d(3) if batch else nn.InstanceNorm3d(3, affine=True)
    layer.double()
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    x, hidden = 5 + 3 * torch.randn(2, 3, *SIZE, dtype=torch.float64), cells(SIZE)
    got = visible_norm(layer, cells, x)
    want, groups = torch.zeros_like(x), [(0, 1)] if batch else [(0,), (1,)]
    for c in range(3):
        for group in groups:
            seen = torch.cat([x[b, c][~hidden[b, 0]] for b in group])
            mean = sum(v.item() for v in seen) / len(seen)
            variance = sum((v.item() - mean) ** 2 for v in seen) / len(seen)
            for b in group:
                want[b, c] = layer.weight[c] * (x[b, c] - mean) / (variance + layer.eps) ** 0.5 + layer.bias[c]
    torch.testing.assert_close(got, want.masked_fill(hidden, 0), rtol=0, atol=1e-10)


@pytest.mark.parametrize("affine", [True, False])
def test_visible_norm__gradients_are_those_of_differences(affine: bool) -> None:
    layer = nn.InstanceNorm3d(2, affine=affine).double()
    x = torch.randn(2, 2, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    if affine:
        nn.init.normal_(layer.weight)
    cells = HiddenCells(torch.rand(2, 1, 3, 2) > 0.4)
    weights = tuple(layer.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: visible_norm(layer, cells, x), (x, *weights))


def test_hidden_cells__a_cell_of_several_blocks_is_visible_if_one_of_them_is() -> None:
    hidden = torch.ones(1, 2, 3, 5, dtype=torch.bool)
    hidden[0, 1, 2, 4] = False
    cells = HiddenCells(hidden)
    assert _visible(cells((4, 6, 10))) == [(z, y, x) for z in (2, 3) for y in (4, 5) for x in (8, 9)]
    assert _visible(cells((1, 2, 3))) == [(0, 1, 2)] and _visible(cells((1, 1, 2))) == [(0, 0, 1)]


def _visible(hidden: Tensor) -> list[tuple[int, ...]]:
    return [tuple(cell) for cell in (~hidden[0, 0]).nonzero().tolist()]


def test_sparse_levels__gradients_are_the_same_with_recomputed_activations(network: FeaturePyramid) -> None:
    x, mask = torch.randn(2, 1, *SIZE), _mask()
    results = []
    for again in (copy.deepcopy(network), network):
        recompute_activations(again, again is network)
        sum(level.square().sum() for level in sparse_levels(again, x, mask)).backward()  # type: ignore[union-attr]
        results.append([p.grad for p in again.parameters() if p.grad is not None])
        assert all("forward" not in vars(m) for m in again.modules())
    assert len(results[0]) == len(results[1])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
