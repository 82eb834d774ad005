from __future__ import annotations

import pytest
import torch

from nnssl.networks.pyramid import Stride, gather_voxels
from nnssl.pretraining.probe_heads import ProbeHeads, fresh_heads

STRIDES: list[Stride] = [(1, 2, 2), (2, 4, 4), (4, 8, 8)]


def _pyramid(strides: list[Stride], channels: tuple[int, ...]) -> list[torch.Tensor]:
    size = (8, 16, 16)
    cells = [[s // t for s, t in zip(size, stride, strict=True)] for stride in strides]
    return [torch.randn(1, c, *shape) * 100 + 7 for c, shape in zip(channels, cells, strict=True)]


@pytest.mark.parametrize("levels", [1, 3])
def test_probe_heads__voxels_and_maps_agree(levels: int) -> None:
    strides, channels = STRIDES[:levels], (3, 4, 5)[:levels]
    torch.manual_seed(0)
    heads, pyramid = ProbeHeads(channels, strides, 3), _pyramid(strides, channels)
    voxels = torch.tensor([[0, z, y, x] for z in range(8) for y in range(16) for x in range(16)])
    rows = gather_voxels(pyramid, strides, voxels)
    for update in range(3):
        heads.set_update(update)
        heads.of_voxels(rows)
    heads.eval()
    cells = [voxels[:, axis + 1] // strides[0][axis] for axis in range(3)]
    for name, of_maps in heads.of_maps(pyramid).items():
        expected = of_maps[0][:, cells[0], cells[1], cells[2]].T
        torch.testing.assert_close(heads.of_voxels(rows)[name], expected)


def test_probe_heads__the_first_update_sets_mean_and_deviation() -> None:
    heads = ProbeHeads((2,), [(1, 1, 1)], 2)
    rows = torch.randn(500, 2) * 50 + 1000
    heads.set_update(0)
    heads.of_voxels(rows)
    torch.testing.assert_close(heads.standardise[0].running_mean, rows.mean(0))
    heads.set_update(100)
    assert heads.standardise[0].momentum == 0.1


def test_probe_heads__twins_share_their_parameters() -> None:
    heads = ProbeHeads((2, 3), STRIDES[:2], 2)
    names = [name for name, _ in heads.named_parameters()]
    assert len(names) == len(set(names)) and not any("of_voxels" in name for name in heads.state_dict())
    heads.of_voxels(torch.randn(10, 5))["nonlinear"].sum().backward()
    assert all(p.grad is not None for p in heads.heads["nonlinear"].parameters())
    assert all(p.grad is None for p in heads.heads["linear"].parameters())


def test_fresh_heads__depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    first = fresh_heads(1, (2,), [(1, 1, 1)], 2)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    same, other = (fresh_heads(seed, (2,), [(1, 1, 1)], 2) for seed in (1, 2))
    weights = first.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in same.state_dict().items())
    linear = [name for name in weights if name.startswith("heads.linear.") and name.endswith("weight")]
    assert linear and not any(torch.equal(weights[name], other.state_dict()[name]) for name in linear)
