from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nnssl.networks.encodings import EncodingHead, PixelEncoder, heads_from_description
from nnssl.networks.fpn_unet import FPN3d
from nnssl.networks.lapn_unet import LapnPyramid
from nnssl.networks.pyramid import FeaturePyramid, Stride

STRIDES: list[Stride] = [(1, 1, 1), (1, 2, 2), (2, 4, 4)]


class Maps(FeaturePyramid):
    """A pyramid whose forward is not needed."""

    def __init__(self, channels: tuple[int, ...] = (3, 5, 6), encodes: bool = False) -> None:
        super().__init__(channels, STRIDES, 1)
        self.encodes = encodes


def _pyramid(channels: tuple[int, ...] = (3, 5, 6)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, c, 8 // z, 16 // y, 12 // x, generator=generator, dtype=torch.float64, requires_grad=True)
        for c, (z, y, x) in zip(channels, STRIDES, strict=True)
    ]


def _read_by_hand(feature_map: np.ndarray, stride: Stride, point: np.ndarray) -> np.ndarray:
    """Trilinear reading of (C, Z, Y, X), corner by corner."""
    place = (point + 0.5) / stride - 0.5
    place = np.clip(place, 0, np.array(feature_map.shape[1:]) - 1)
    low = np.floor(place).astype(int)
    total = np.zeros(len(feature_map))
    for corner in product((0, 1), repeat=3):
        cell = np.minimum(low + corner, np.array(feature_map.shape[1:]) - 1)
        weight = np.prod(np.where(corner, place - low, 1 - (place - low)))
        at: tuple[Any, ...] = (slice(None), *cell)
        total += weight * feature_map[at]
    return total


@pytest.mark.parametrize("level", [0, 1, 2])
def test_at__equals_reading_the_whole_map(level: int) -> None:
    head = EncodingHead(Maps(), level, 4).double()
    pyramid = _pyramid()
    maps = head(pyramid)
    assert maps.shape[1] == 4
    torch.testing.assert_close(maps.square().sum(1), torch.ones_like(maps[:, 0]))
    rng = np.random.default_rng(0)
    points = rng.uniform(0, [1.999, 7, 15, 11], (40, 4))
    points[:, 0] = np.floor(points[:, 0])
    points[:5] = np.round(points[:5])
    points[5:7, 1:] = [[0, 0, 0], [7, 15, 11]]  # beyond the outermost centres of coarse cells
    read = head.at(pyramid, torch.from_numpy(points))
    for row, point in zip(read, points, strict=True):
        whole = maps[int(point[0])].detach().numpy()
        expected = _read_by_hand(whole, STRIDES[level], point[1:])
        np.testing.assert_allclose(row.detach().numpy(), expected / np.linalg.norm(expected), rtol=0, atol=1e-12)


def test_at__a_voxel_of_the_finest_level_is_read_as_it_is_and_gets_the_gradient() -> None:
    head = EncodingHead(Maps(encodes=True), 0, 3)
    pyramid = _pyramid()
    read = head.at(pyramid, torch.tensor([[1.0, 2, 3, 4]], dtype=torch.float64))
    torch.testing.assert_close(read[0], head(pyramid)[1, :, 2, 3, 4], rtol=0, atol=1e-15)
    (gradient,) = torch.autograd.grad(read[0, 0], pyramid[0])
    cells = gradient.abs().sum(1).nonzero().tolist()
    assert cells == [[1, 2, 3, 4]]


def test_at__without_points_is_empty_and_attached() -> None:
    head = EncodingHead(Maps(), 1, 4).double()
    pyramid = _pyramid()
    read = head.at(pyramid, torch.zeros(0, 4, dtype=torch.float64))
    assert read.shape == (0, 4)
    read.sum().backward()
    assert pyramid[1].grad is not None and not pyramid[1].grad.any()
    assert all(p.grad is not None for p in head.parameters())


def test_encoding_head__an_encoding_of_that_many_channels_needs_no_convolution() -> None:
    kinds: dict[tuple[bool, int, int], bool] = {}
    for encodes, level, dim in product((True, False), (0, 1), (3, 5)):
        kinds[encodes, level, dim] = EncodingHead(Maps(encodes=encodes), level, dim).layer is None
    assert [key for key, absent in kinds.items() if absent] == [(True, 0, 3)]


def test_encoding_head__is_float32_under_autocast() -> None:
    head = EncodingHead(Maps(), 0, 4)
    pyramid = [m.detach().float() for m in _pyramid()]
    points = torch.tensor([[0.0, 1.5, 2.25, 3.0]])
    with torch.autocast("cpu", torch.bfloat16):
        maps, read = head(pyramid), head.at(pyramid, points)
    assert maps.dtype == read.dtype == torch.float32
    torch.testing.assert_close(maps.square().sum(1), torch.ones_like(maps[:, 0]))
    torch.testing.assert_close(read.square().sum(1), torch.ones(1))


@pytest.mark.parametrize("size", [(8, 16, 16), (7, 13, 18)], ids=["fits", "padded"])
def test_pixel_encoder__maps_any_size(size: tuple[int, int, int]) -> None:
    backbone = LapnPyramid(2, (4, 6, 8), 1, 5)
    encoder = PixelEncoder(backbone, {"fine": EncodingHead(backbone, 0, 5), "coarse": EncodingHead(backbone, 2, 7)})
    assert encoder.strides == {"fine": (1, 1, 1), "coarse": (4, 4, 4)} and encoder.dims == {"fine": 5, "coarse": 7}
    maps = encoder.freeze()(torch.randn(1, 2, *size))
    assert maps["fine"].shape == (1, 5, *size)
    assert maps["coarse"].shape == (1, 7, *(-(-n // 4) for n in size))
    for encoding in maps.values():
        torch.testing.assert_close(encoding.norm(dim=1), torch.ones_like(encoding[:, 0]))
        assert not encoding.requires_grad
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())


def test_heads_from_description__gives_equal_heads() -> None:
    backbone = FPN3d(1, 4, 3)
    heads: dict[str, Any] = {"a": EncodingHead(backbone, 0, 4), "b": EncodingHead(backbone, 2, 6)}
    again = PixelEncoder(backbone, heads_from_description(backbone, {n: h.description() for n, h in heads.items()}))
    again.load_state_dict(PixelEncoder(backbone, heads).state_dict())
    assert {name.split(".")[0] for name in again.state_dict()} == {"backbone", "heads"}
