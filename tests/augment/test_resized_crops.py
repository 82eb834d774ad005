from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nnssl.augment.resized_crops import resized_crops, sample_orientations


def _expected(volume: Tensor, start: Tensor, size: Tensor, patch: tuple[int, ...], flips: Tensor, turns: int) -> Tensor:
    """Plain steps, one after the other: cut, resize, flip, turn."""
    stop = start + size
    crop = volume[:, start[0] : stop[0], start[1] : stop[1], start[2] : stop[2]]
    resized = F.interpolate(crop[None], patch, mode="trilinear", align_corners=False)[0]
    flipped = resized.flip([axis + 1 for axis in range(3) if flips[axis]])
    return torch.from_numpy(np.rot90(flipped.numpy(), turns, axes=(2, 3)).copy())


@pytest.mark.parametrize(
    ("size", "patch"),
    [((9, 12, 12), (6, 8, 8)), ((4, 6, 5), (6, 8, 8)), ((5, 9, 7), (5, 9, 7)), ((1, 4, 4), (2, 6, 6))],
    ids=["smaller", "larger", "as it is", "one slice"],
)
def test_resized_crops__equals_the_plain_steps(size: tuple[int, ...], patch: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    volumes = torch.from_numpy(rng.random((2, 2, 12, 30, 26)))
    crops = 8
    sizes = torch.tensor([size, [max(1, n - 1) for n in size]])
    room = np.subtract([12, 30, 26], size).tolist()
    starts = torch.from_numpy(rng.integers(0, room, size=(2, crops, 3)))
    flips = torch.from_numpy(rng.random((2, crops, 3)) < 0.5)
    turns = torch.arange(2 * crops).view(2, crops) % 4
    if patch[1] != patch[2]:
        turns = turns // 2 * 2
    result = resized_crops(volumes, starts, sizes, patch, flips, turns)
    assert result.shape == (2, crops, 2, *patch)
    for i in range(2):
        for k in range(crops):
            expected = _expected(volumes[i], starts[i, k], sizes[i], patch, flips[i, k], int(turns[i, k]))
            torch.testing.assert_close(result[i, k], expected, rtol=0, atol=1e-12)


def test_resized_crops__float32_is_near_enough_in_a_large_volume() -> None:
    generator = torch.Generator().manual_seed(0)
    volumes = torch.rand(1, 1, 4, 16, 384, generator=generator)
    starts = torch.tensor([[[0, 0, 288], [0, 0, 3]]])
    sizes, flips, turns = torch.tensor([[4, 16, 96]]), torch.zeros(1, 2, 3, dtype=torch.bool), torch.zeros(1, 2).long()
    single = resized_crops(volumes, starts, sizes, (4, 16, 64), flips, turns)
    double = resized_crops(volumes.double(), starts, sizes, (4, 16, 64), flips, turns)
    torch.testing.assert_close(single, double.float(), rtol=0, atol=1e-4)


def test_sample_orientations__has_the_stated_probabilities_and_is_independent() -> None:
    drawn = sample_orientations(np.random.default_rng(0), 20_000, 0.2, 0.3)
    assert drawn["flips"].shape == (20_000, 3) and drawn["flips"].dtype == bool
    np.testing.assert_allclose(drawn["flips"].mean(0), 0.2, atol=0.015)
    np.testing.assert_allclose(np.bincount(drawn["turns"]) / 20_000, [0.7, 0.1, 0.1, 0.1], atol=0.01)
    both = (drawn["flips"][:, 0] & drawn["flips"][:, 1]).mean()
    assert abs(both - 0.04) < 0.01
