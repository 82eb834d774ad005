from __future__ import annotations

import numpy as np
import pytest
import torch

from nnssl.networks.pyramid import Stride, gather_voxels
from nnssl.pretraining.probe_heads import DiceCounts, ProbeHeads, fresh_heads, mean_dice, probe_loss, sample_voxels

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


def _classes() -> np.ndarray:
    classes = np.zeros((10, 10, 10), dtype=np.int64)
    classes[0, :2, :5] = 1  # 1 % of the voxels
    classes[5:7] = 2
    classes[9] = -1
    return classes


def test_sample_voxels__every_class_is_seen_and_the_weights_undo_it() -> None:
    classes = _classes()
    voxels, drawn, weights = sample_voxels(np.random.default_rng(0), classes, 900)
    assert abs(len(drawn) - 900) < 3 and weights.mean() == pytest.approx(1)
    assert np.array_equal(classes[tuple(voxels.T)], drawn) and (drawn >= 0).all()
    assert (drawn == 1).sum() > 150  # a sixth of them, of a hundredth of the crop
    for k, share in ((0, 690 / 900), (1, 10 / 900), (2, 200 / 900)):
        assert weights[drawn == k].sum() / weights.sum() == pytest.approx(share)


def test_sample_voxels__is_a_function_of_the_generator() -> None:
    first, second = (sample_voxels(np.random.default_rng([1, 2]), _classes(), 50) for _ in range(2))
    assert np.array_equal(first.voxels, second.voxels)


def test_probe_loss__is_that_of_the_whole_crop() -> None:
    """Every voxel once, with weight 1, and each class thinned out with its weight, agree."""
    logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0], [0.5, 0.0, 1.0]]).double()
    classes = torch.tensor([0, 1, 2])
    numbers = torch.tensor([6, 2, 1])
    whole = probe_loss(logits.repeat_interleave(numbers, 0), classes.repeat_interleave(numbers), torch.ones(9).double())
    thinned = probe_loss(logits, classes, numbers / 3.0 * torch.ones(3).double())
    assert float(thinned) == pytest.approx(float(whole), rel=1e-4)


def test_probe_loss__hand_made_value() -> None:
    # one background and one foreground voxel, undecided: cross-entropy ln 2, Dice 2 * 0.5 / (1 + 1)
    loss = probe_loss(torch.zeros(2, 2), torch.tensor([0, 1]), torch.ones(2))
    assert float(loss) == pytest.approx(np.log(2) + 0.5, abs=1e-4)


def test_probe_loss__a_crop_of_background_has_cross_entropy_alone() -> None:
    assert float(probe_loss(torch.zeros(4, 3), torch.zeros(4).long(), torch.ones(4))) == pytest.approx(np.log(3))


def test_dice_counts__by_label_over_windows_without_ignored_voxels() -> None:
    counts = DiceCounts((0, 2, 5), {"a": (2,), "b": (5,), "both": (2, 5)})
    counts.add(np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2]))
    counts.add(np.array([[1, -1]]), np.array([[0, 1]]))
    dice = counts.dice()
    assert dice["a"] == pytest.approx(2 * 1 / (3 + 1)) and dice["b"] == pytest.approx(2 * 1 / (1 + 2))
    assert dice["both"] == pytest.approx(2 * 3 / (4 + 3))


def test_dice_counts__a_label_that_the_case_has_not_is_nan_even_if_predicted() -> None:
    counts = DiceCounts((0, 1), {"a": (1,)})
    counts.add(np.array([0, 0]), np.array([0, 1]))
    assert np.isnan(counts.dice()["a"])


def test_mean_dice__absent_labels_are_left_out() -> None:
    nan = float("nan")
    assert mean_dice([{"a": 0.5, "b": nan}, {"a": 0.7, "b": nan}]) == {"": 0.6, "a": 0.6}
    assert mean_dice([{"a": nan}, {"a": nan}]) == {}
    # the mean over labels of means over cases
    assert mean_dice([{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": nan}])[""] == pytest.approx(0.25)
