from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from nnssl.core.geometry import overlaps_of_patches
from nnssl.methods.pimpic.loss import region_averages
from nnssl.networks.pyramid import Stride
from tests.networks.helpers import load_reference

REFERENCE = load_reference("pimpic.json")
LAYOUTS = [torch.contiguous_format, torch.channels_last_3d]


def two_patches(second: list[int]) -> tuple[Tensor, Tensor]:
    """The maps of the reference, and the overlap boxes of patches that start at 0 and at `second`."""
    maps = torch.stack([torch.arange(64), torch.arange(100, 164)]).double().view(2, 1, 4, 4, 4)
    _, boxes = overlaps_of_patches(np.array([[0, 0, 0], second]), [4, 4, 4])
    return maps, torch.from_numpy(boxes)


def in_order(averages: Tensor) -> Tensor:
    """Overlap of patch 1, overlap of patch 2, rest of patch 1, rest of patch 2, from (2, 2, 2, 1)."""
    return torch.stack([averages[0, 1], averages[1, 0]], dim=1).flatten()


def brute_force(feature_map: Tensor, stride: Stride, boxes: Tensor) -> Tensor:
    out = torch.zeros(*boxes.shape[:2], 2, feature_map.shape[1], dtype=torch.float64)
    for m, k in np.ndindex(*boxes.shape[:2]):
        start, stop = boxes[m, k].tolist()
        inside = torch.zeros(feature_map.shape[2:], dtype=torch.bool)
        for z, y, x in np.ndindex(*inside.shape):
            cell = [(c * s, (c + 1) * s) for c, s in zip((z, y, x), stride, strict=True)]
            inside[z, y, x] = all(a < e and b > s for (a, b), s, e in zip(cell, start, stop, strict=True))
        for part, mask in enumerate((inside, ~inside)):
            if mask.any():
                out[m, k, part] = feature_map[m][:, mask].double().mean(1)
    return out


@pytest.mark.parametrize("level", [0, 1])
def test_region_averages__vectors(level: int) -> None:
    expected = REFERENCE["region_average"]
    maps, boxes = two_patches(expected["boxes"][1][0])
    assert boxes[0, 1].tolist() == expected["overlap_in_patch1"]
    assert boxes[1, 0].tolist() == expected["overlap_in_patch2"]
    pooled = functional.avg_pool3d(maps, 2) if level else maps
    averages = in_order(region_averages(pooled, (2**level,) * 3, boxes))
    torch.testing.assert_close(
        averages, torch.tensor(expected[f"level{level}"], dtype=torch.float64), rtol=0, atol=1e-7
    )


def test_region_averages__empty_rest_is_exactly_zero() -> None:
    maps, boxes = two_patches([0, 0, 0])
    averages = in_order(region_averages(maps, (1, 1, 1), boxes))
    expected = torch.tensor(REFERENCE["region_average_identical_boxes"]["code"], dtype=torch.float64)
    torch.testing.assert_close(averages, expected, rtol=0, atol=1e-7)
    assert averages[2:].eq(0).all()


@pytest.mark.parametrize("memory_format", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("stride", "size"), [((1, 1, 1), (6, 8, 12)), ((1, 2, 4), (6, 4, 3)), ((4, 3, 5), (2, 3, 3))])
def test_region_averages__anisotropic_levels_as_by_brute_force(
    memory_format: torch.memory_format, dtype: torch.dtype, stride: Stride, size: tuple[int, int, int]
) -> None:
    """The last stride does not divide the patch of (6, 8, 12): its map is rounded up, as by pooling with padding."""
    rng = np.random.default_rng(0)
    starts = rng.integers(-5, 6, (4, 3))
    _, boxes = overlaps_of_patches(starts, [6, 8, 12])
    maps = torch.randn(4, 3, *size).to(dtype=dtype, memory_format=memory_format)
    averages = region_averages(maps, stride, torch.from_numpy(boxes))
    assert averages.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    expected = brute_force(maps, stride, torch.from_numpy(boxes))
    torch.testing.assert_close(averages.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("memory_format", LAYOUTS)
def test_region_averages__gradient(memory_format: torch.memory_format) -> None:
    _, boxes = overlaps_of_patches(np.array([[0, 0, 0], [1, -2, 3], [0, 0, 0], [9, 9, 9]]), [4, 4, 4])
    maps = torch.randn(4, 2, 4, 4, 4, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: region_averages(x, (1, 1, 1), torch.from_numpy(boxes)), maps)


def test_region_averages__overlaps_of_a_shared_volume_agree_at_the_finest_level() -> None:
    """Two patches cut from one map: what they have in common has one average, whichever patch it is read in."""
    volume = torch.randn(2, 12, 12, 12, dtype=torch.float64)
    starts = np.array([[0, 1, 2], [3, 0, 4], [2, 2, 2]])
    _, boxes = overlaps_of_patches(starts, [6, 6, 6])
    maps = torch.stack([volume[:, z : z + 6, y : y + 6, x : x + 6] for z, y, x in starts])
    overlap = region_averages(maps, (1, 1, 1), torch.from_numpy(boxes))[:, :, 0]
    torch.testing.assert_close(overlap, overlap.transpose(0, 1))
