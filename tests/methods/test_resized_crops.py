from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nnssl.methods.shared.augment import scaled_crops
from nnssl.methods.voco.augment import resized_crops, sample_orientations


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


def test_scaled_crops__samples_by_the_voxels_centres() -> None:
    z, y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (9, 11, 14)), indexing="ij")
    ramp = torch.stack([z + 20 * y, x])[None].repeat(2, 1, 1, 1, 1)
    scales = torch.tensor([0.9, 1.125], dtype=torch.float64)
    patches = scaled_crops(ramp, scales, (6, 8, 10))
    for patch, scale in zip(patches, scales, strict=True):
        at = [1 + (torch.arange(n, dtype=torch.float64) + 0.5) * scale - 0.5 for n in (6, 8, 10)]
        rows, columns = torch.meshgrid(at[0], at[1], indexing="ij")
        torch.testing.assert_close(patch[0], (rows + 20 * columns)[..., None].expand(6, 8, 10), rtol=0, atol=1e-10)
        torch.testing.assert_close(patch[1], at[2].expand(6, 8, 10), rtol=0, atol=1e-10)


def test_scaled_crops__scale_one_cuts() -> None:
    region = torch.rand(1, 2, 8, 9, 10)
    torch.testing.assert_close(scaled_crops(region, torch.ones(1), (6, 7, 8))[0], region[0, :, 1:7, 1:8, 1:9])
