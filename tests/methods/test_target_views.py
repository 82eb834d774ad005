from __future__ import annotations

from math import pi
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nnssl.methods.alice.augment import TARGET_KEYS, TargetViewConfig, sample_target_views, target_views

SPACING = torch.tensor([[2.0, 1.0, 1.0]])


def _still(**changes: Any) -> dict[str, Tensor]:
    still = {"angles": [0.0], "scales": [1.0], "shifts": [[0.0] * 3], "flips": [[False] * 3], "gains": [[1.0]],
             "offsets": [[0.0]]}  # fmt: skip
    return {name: torch.tensor(value) for name, value in (still | changes).items()}


def test_target_views__nothing_drawn_changes_nothing() -> None:
    crop = torch.randn(1, 1, 4, 6, 8)
    torch.testing.assert_close(target_views(crop, SPACING, _still()), crop)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_target_views__flips_an_axis(axis: int) -> None:
    crop = torch.randn(1, 1, 4, 6, 8)
    flips = [[a == axis for a in range(3)]]
    torch.testing.assert_close(target_views(crop, SPACING, _still(flips=flips)), crop.flip(axis + 2))


def test_target_views__a_quarter_turn_is_numpys() -> None:
    crop = torch.randn(1, 1, 4, 6, 6)
    turned = target_views(crop, SPACING, _still(angles=[pi / 2]))
    torch.testing.assert_close(turned, torch.rot90(crop, -1, (3, 4)), rtol=1e-4, atol=1e-5)


def test_target_views__an_angle_is_one_in_millimetres() -> None:
    # a line along y in voxels of 1 x 2 mm; a quarter turn of 8 mm x 8 mm puts it along x
    crop = torch.zeros(1, 1, 1, 8, 4)
    crop[..., 1] = 1
    turned = target_views(crop, torch.tensor([[1.0, 1.0, 2.0]]), _still(angles=[pi / 2]))[0, 0, 0]
    assert turned[2:4].min() > 0.7 and turned[[0, 5, 6, 7]].abs().max() < 1e-4  # 2 to 4 mm, before and after


def test_target_views__scale_and_shift_choose_the_part_that_is_resized() -> None:
    crop = torch.arange(8.0).expand(1, 1, 4, 4, 8)
    view = target_views(crop, SPACING, _still(scales=[0.5], shifts=[[0.0, 0.0, 0.25]]))[0, 0, 1, 1]
    expected = 3.5 + 1 + (torch.arange(8) - 3.5) / 2  # the middle moves by a quarter of half the width
    torch.testing.assert_close(view, expected)


def test_target_views__a_view_does_not_depend_on_its_batch_and_keeps_the_crop() -> None:
    rng = np.random.default_rng(0)
    affine, is_ct = np.tile([-1350.0, 2350.0], (3, 2, 1)), np.ones((3, 2), dtype=bool)
    params = {k: torch.as_tensor(v) for k, v in sample_target_views(rng, affine, is_ct, TargetViewConfig()).items()}
    crops, spacing = torch.randn(3, 2, 6, 8, 8), SPACING.expand(3, 3)
    before = crops.clone()
    whole = target_views(crops, spacing, params)
    alone = target_views(crops[1:2], spacing[1:2], {k: v[1:2] for k, v in params.items()})
    torch.testing.assert_close(alone, whole[1:2])
    assert torch.equal(crops, before) and whole.shape == crops.shape


def test_sample_target_views__draws_within_its_limits() -> None:
    affine = np.tile([[-1350.0, 2350.0], [-500.0, 3.0]], (400, 1, 1))
    is_ct = np.tile([True, False], (400, 1))
    params = sample_target_views(np.random.default_rng(0), affine, is_ct, TargetViewConfig())
    assert params.keys() == set(TARGET_KEYS) and all(v.dtype == np.float32 for k, v in params.items() if k != "flips")
    assert 14 < np.degrees(np.abs(params["angles"]).max()) <= 15.001
    room = 1 - params["scales"][:, None]
    assert (np.abs(params["shifts"]) <= room + 1e-6).all() and 0.75 <= params["scales"].min() < 0.77
    assert abs(params["flips"].mean() - 0.5) < 0.05
    gains = params["gains"]
    assert np.array_equal(gains[:, 0], gains[:, 1]) and 0.9 <= gains.min() < 0.91 and 1.09 < gains.max() <= 1.1001
    # -125 HU moves by the shift alone, at most a tenth of 350 HU
    value = (-125 + 1350) / 2350
    moved = 2350 * (gains[:, 0] * value + params["offsets"][:, 0] - value)
    assert 30 < np.abs(moved).max() <= 35.01


def test_sample_target_views__follows_its_options() -> None:
    affine, is_ct = np.tile([-125.0, 350.0], (300, 1, 1)), np.ones((300, 1), dtype=bool)
    config = TargetViewConfig(rotation_degrees=90, least_scale=1, flip_probability=0, gain=0, shift_hu=70)
    params = sample_target_views(np.random.default_rng(0), affine, is_ct, config)
    assert 85 < np.degrees(np.abs(params["angles"]).max()) <= 90.001 and not params["flips"].any()
    assert (params["scales"] == 1).all() and not params["shifts"].any() and (params["gains"] == 1).all()
    assert 0.19 < np.abs(params["offsets"]).max() <= 0.2001
