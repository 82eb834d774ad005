from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nnssl.methods.shared.overlapping_crops import (
    collate_regions,
    cut_crops,
    most_overlap,
    overlap_fraction,
    read_region,
    region_size,
    sample_pair,
    sample_points,
    scaled_crops,
    to_patch,
    to_source,
)
from nnssl.methods.voco.augment import resized_crops, sample_orientations
from tests.networks.helpers import load_reference
from tests.volumes import CT, MR, add_volume, index_volume, make_folder

REFERENCE = load_reference("lapn.json")


def test_to_source__gives_the_reference_values() -> None:
    example = REFERENCE["coordinate_map"]["example"]
    index = np.array(example["index"])
    source = to_source(index, np.float64(example["start"]), np.float64(example["scale"]))
    np.testing.assert_allclose(source, example["source"], rtol=0, atol=1e-12)
    back = to_patch(source, np.float64(example["start"]), np.float64(example["scale"]))
    np.testing.assert_allclose(back, index, rtol=0, atol=1e-12)


def test_overlap_fraction__gives_the_reference_values() -> None:
    rule = REFERENCE["overlap_rule"]
    for example in rule["examples"]:
        for sign in (1, -1):
            starts = np.array([[5, 6, 7], np.array([5, 6, 7]) + sign * np.array(example["shift"])])
            fraction = overlap_fraction(starts, np.ones(2), rule["patch"])
            assert fraction == pytest.approx(example["fraction"], abs=1e-12)
            assert (fraction >= rule["minimum_overlap_fraction"]) == example["ok"]


@pytest.mark.parametrize("size", [(40, 50, 60), (12, 9, 60), (8, 8, 8)], ids=["large", "mixed", "small"])
@pytest.mark.parametrize("options", [(0.1, 0.125), (0.3, 0.15), (0.0, 0.9)], ids=str)
def test_sample_pair__overlaps_enough_and_stays_in_the_volume(
    size: tuple[int, int, int], options: tuple[float, float]
) -> None:
    patch, whole = np.array([10, 12, 14]), np.array(size)
    scale_range, least = options
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(300):
        anchor = rng.integers(0, whole)
        starts, scales = sample_pair(rng, anchor, whole, patch, scale_range, least)
        assert overlap_fraction(starts, scales, patch) >= least
        assert (np.abs(scales - 1) <= scale_range + 1e-7).all() and (scales == scales.astype(np.float32)).all()
        extents = np.ceil(scales[:, None] * patch)
        assert (starts[0] <= anchor).all() and (anchor < starts[0] + extents[0]).all()
        inside = (starts >= 0) & (starts + extents <= whole)
        around = (starts <= 0) & (starts + extents >= whole)
        assert (inside | around).all()
        drawn.append(scales)
    if scale_range:
        of_first, of_second = np.array(drawn).T
        assert abs(np.corrcoef(of_first, of_second)[0, 1]) < 0.2
        assert of_first.min() < 1 - 0.9 * scale_range and of_first.max() > 1 + 0.9 * scale_range


def test_sample_pair__places_are_as_likely_as_each_other() -> None:
    """Against plain rejection: no overlap that suffices is preferred."""
    rng = np.random.default_rng(0)
    fractions = []
    for _ in range(4000):
        starts, scales = sample_pair(rng, [100, 100, 100], [200, 200, 200], [16, 16, 16], 0.0, 0.125)
        fractions.append(overlap_fraction(starts, scales, [16, 16, 16]))
    shifts = rng.integers(-16, 16, (40_000, 3), endpoint=True)
    expected = np.prod(1 - np.abs(shifts) / 16, axis=1)
    expected = expected[expected >= 0.125]
    assert np.mean(fractions) == pytest.approx(expected.mean(), abs=0.01)
    np.testing.assert_allclose(
        np.quantile(fractions, [0.1, 0.5, 0.9]), np.quantile(expected, [0.1, 0.5, 0.9]), atol=0.03
    )


def test_most_overlap__can_be_had() -> None:
    least = most_overlap(0.2) - 1e-6
    rng = np.random.default_rng(0)
    for _ in range(50):
        starts, scales = sample_pair(rng, [20, 20, 20], [40, 40, 40], [10, 10, 10], 0.2, least)
        assert overlap_fraction(starts, scales, [10, 10, 10]) >= least


def test_region_size__holds_all_that_sampling_looks_at() -> None:
    for patch in (1, 7, 192):
        for scale in (0.5, 0.9, 1.0, 1.1, 2.0):
            positions = 1 + to_source(np.arange(patch), np.float64(0), np.float64(scale))
            assert positions.min() >= 0
            (size,) = region_size([patch], scale)
            assert np.floor(positions.max()) + 2 <= size < np.floor(positions.max()) + 4


def test_sample_points__are_in_both_patches_the_body_and_the_volume() -> None:
    size, patch = np.array([30, 14, 26]), (12, 16, 14)  # the patch is larger than the volume on one axis
    rng = np.random.default_rng(0)
    body = rng.random(tuple(size)) < 0.5
    asked: list[tuple[np.ndarray, np.ndarray]] = []

    def read(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        asked.append((start, stop))
        return body[tuple(map(slice, start, stop))]

    for _ in range(20):
        starts, scales = sample_pair(rng, rng.integers(0, size), size, patch, 0.1, 0.125)
        points, source = sample_points(rng, read, size, patch, starts, scales, 50)
        assert points.shape == (len(source), 2, 3) and len(source) <= 50
        assert (points[:, 0] == np.rint(points[:, 0])).all()
        assert (points >= 0).all() and (points <= np.array(patch) - 1).all()
        assert len(np.unique(points[:, 0], axis=0)) == len(points)
        for k in range(2):  # the map is exact in both patches
            np.testing.assert_allclose(to_source(points[:, k], starts[k], scales[k]), source, rtol=0, atol=1e-9)
        assert body[tuple(np.rint(source).astype(int).T)].all()
    assert all((start >= 0).all() and (stop <= size).all() for start, stop in asked)


def test_sample_points__takes_all_where_there_are_few_and_none_without_body() -> None:
    starts, scales = np.zeros((2, 3), dtype=np.int64), np.ones(2)

    def read(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        mask = np.zeros((8, 8, 8), dtype=bool)
        mask[2, 3, 4] = mask[5, 5, 5] = True
        return mask[tuple(map(slice, start, stop))]

    rng, size = np.random.default_rng(0), np.array([8, 8, 8])
    points, source = sample_points(rng, read, size, (8, 8, 8), starts, scales, 1024)
    assert source.tolist() == points[:, 1].tolist() == [[2, 3, 4], [5, 5, 5]]
    empty, _ = sample_points(rng, lambda a, b: np.zeros(b - a, dtype=bool), size, (8, 8, 8), starts, scales, 5)
    assert empty.shape == (0, 2, 3)
    apart = np.array([[0, 0, 0], [50, 0, 0]])
    points, source = sample_points(rng, read, size, (8, 8, 8), apart, scales, 5)
    assert points.shape == (0, 2, 3) and source.shape == (0, 3)


def _expected(
    volume: Tensor, start: Tensor, size: Tensor, patch: tuple[int, ...], flips: Tensor, turns: int, align_corners: bool
) -> Tensor:
    """Plain steps, one after the other: cut, resize, flip, turn."""
    stop = start + size
    crop = volume[:, start[0] : stop[0], start[1] : stop[1], start[2] : stop[2]]
    resized = F.interpolate(crop[None], patch, mode="trilinear", align_corners=align_corners)[0]
    flipped = resized.flip([axis + 1 for axis in range(3) if flips[axis]])
    return torch.from_numpy(np.rot90(flipped.numpy(), turns, axes=(2, 3)).copy())


@pytest.mark.parametrize(
    ("size", "patch"),
    [((9, 12, 12), (6, 8, 8)), ((4, 6, 5), (6, 8, 8)), ((5, 9, 7), (5, 9, 7)), ((1, 4, 4), (2, 6, 6))],
    ids=["smaller", "larger", "as it is", "one slice"],
)
@pytest.mark.parametrize("align_corners", [True, False])
def test_resized_crops__equals_the_plain_steps(
    size: tuple[int, ...], patch: tuple[int, int, int], align_corners: bool
) -> None:
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
    result = resized_crops(volumes, starts, sizes, patch, flips, turns, align_corners)
    assert result.shape == (2, crops, 2, *patch)
    for i in range(2):
        for k in range(crops):
            expected = _expected(
                volumes[i], starts[i, k], sizes[i], patch, flips[i, k], int(turns[i, k]), align_corners
            )
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


@pytest.mark.parametrize("reach", [2, 9], ids=["shared box is smaller", "crops are smaller"])
def test_cut_crops__gives_what_each_crop_read_alone_has(tmp_path: Path, reach: int) -> None:
    folder, patch, rng = make_folder(tmp_path, (CT, MR)), (4, 6, 5), np.random.default_rng(0)
    add_volume(folder, "a", index_volume((20, 24, 22), 2) + 1)
    volume = folder.open("a")
    starts = rng.integers(0, reach, (3, 4, 3)) - 1
    samples = [read_region(volume, own, patch) for own in starts]
    assert all(s["region"].size <= 2 * 4 * 4 * 6 * 5 for s in samples)
    sizes = [s["region"].size for s in samples]
    batch = {**collate_regions(samples), "corners": torch.from_numpy(np.stack([s["corners"] for s in samples]))}
    assert len(batch["region"]) == sum(sizes)
    expected = [[volume.read(start, start + patch) for start in own] for own in starts]
    np.testing.assert_array_equal(cut_crops(batch, patch).numpy(), np.array(expected))
