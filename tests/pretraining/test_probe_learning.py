from __future__ import annotations

import numpy as np
import pytest
import torch

from nnssl.pretraining.probe_heads import probe_loss, sample_voxels


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
