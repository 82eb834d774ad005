from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nnssl.core.errors import UserError
from nnssl.networks.build import backbone_of
from nnssl.networks.fpn_unet import FPN3d
from nnssl.networks.layout import to_channels_last
from nnssl.networks.pimpic_unet import Pimpic3d
from nnssl.networks.pyramid import (
    check_three_axes,
    gather_voxels,
    interpolate_cells,
    padded_to_multiple,
)
from tests.networks.helpers import load_reference, unet_configuration

STRIDES = [(1, 1, 1), (1, 2, 2), (2, 4, 4)]
CHANNELS = [3, 5, 2]
SIZE = (5, 8, 9)


def _pyramid(layout: torch.memory_format, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps = []
    for channels, stride in zip(CHANNELS, STRIDES, strict=True):
        size = [-(-n // s) for n, s in zip(SIZE, stride, strict=True)]
        values = torch.randn(2, channels, *size, generator=generator, dtype=torch.float64).to(dtype)
        maps.append(values.contiguous(memory_format=layout).requires_grad_())
    return maps


def _voxels(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.stack([torch.randint(n, (count,), generator=generator) for n in (2, *SIZE)], dim=1)


# 4 rows are fewer than the cells of any map, 500 more than those of all: both ways of reading the default layout.
@pytest.mark.parametrize("count", [4, 500])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
def test_gather_voxels__equals_a_loop(layout: torch.memory_format, count: int) -> None:
    pyramid, voxels = _pyramid(layout), _voxels(count)
    weights = torch.randn(count, sum(CHANNELS), dtype=torch.float64)
    features = gather_voxels(pyramid, STRIDES, voxels)
    gradients = torch.autograd.grad((features * weights).sum(), pyramid)

    expected = [torch.zeros_like(m) for m in pyramid]
    for row, (b, z, y, x) in enumerate(voxels.tolist()):
        first = 0
        for level, (sz, sy, sx) in enumerate(STRIDES):
            channels = slice(first, first + CHANNELS[level])
            cell = (b, slice(None), z // sz, y // sy, x // sx)
            torch.testing.assert_close(features[row, channels], pyramid[level][cell], rtol=0, atol=0)
            expected[level][cell] += weights[row, channels]
            first = channels.stop
    torch.testing.assert_close(gradients, tuple(expected))


def test_gather_voxels__equals_the_official_selection() -> None:
    case = load_reference("vox2vec.json")["select_from_pyramid"]
    pyramid = [torch.arange(torch.Size(s).numel()).double().reshape(1, *s) for s in case["level_shapes"]]
    voxels = torch.tensor([[0, *voxel] for voxel in case["voxels"]])
    features = gather_voxels(pyramid, [(2**level,) * 3 for level in range(3)], voxels)
    assert features.tolist() == case["output"]


def test_gather_voxels__gradient_has_the_layout_of_a_channels_last_map() -> None:
    pyramid = _pyramid(torch.channels_last_3d)
    gradients = torch.autograd.grad(gather_voxels(pyramid, STRIDES, _voxels(10)).sum(), pyramid)
    assert all(g.is_contiguous(memory_format=torch.channels_last_3d) for g in gradients)


def test_gather_voxels__sums_the_gradients_of_a_half_precision_cell_exactly() -> None:
    coarse = torch.ones(1, 1, 1, 1, 1, dtype=torch.bfloat16, requires_grad=True)
    features = gather_voxels([coarse], [(16, 16, 16)], torch.zeros(1024, 4, dtype=torch.long))
    assert features.dtype == torch.float32
    (gradient,) = torch.autograd.grad(features.sum(), coarse)
    assert gradient.item() == 1024  # a sum in bf16 stops at 256


@pytest.mark.parametrize("channels", [1, 3])
def test_to_channels_last__convolution_keeps_the_layout(channels: int) -> None:
    x = torch.randn(2, channels, 4, 5, 6)
    converted = to_channels_last(x)
    assert torch.equal(converted, x)
    output = torch.nn.Conv3d(channels, 2, 3)(converted)
    assert output.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("patch", [[32, 32], [32, 0, 32]])
def test_check_three_axes__refuses(patch: list[int]) -> None:
    with pytest.raises(UserError, match="three numbers"):
        check_three_axes(patch)


def test_padded_to_multiple__adds_zeros_at_the_end_where_needed() -> None:
    image = torch.randn(1, 2, 7, 13, 18)
    padded = padded_to_multiple(image, (2, 4, 4))
    assert padded.shape == (1, 2, 8, 16, 20) and torch.equal(padded[:, :, :7, :13, :18], image)
    assert padded.count_nonzero() == image.count_nonzero()
    assert padded_to_multiple(padded, (2, 4, 4)) is padded


@pytest.mark.parametrize("stride", STRIDES)
def test_interpolate_cells__is_exact_for_ramps(stride: tuple[int, int, int]) -> None:
    size = (4, 5, 6)
    centres = [(torch.arange(n, dtype=torch.float64) + 0.5) * s - 0.5 for n, s in zip(size, stride, strict=True)]
    ramp = torch.stack(torch.meshgrid(*centres, indexing="ij"), -1)  # each cell holds where its centre lies
    points = torch.rand(50, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 12
    corners, weights = interpolate_cells(size, stride, points)
    torch.testing.assert_close(weights.sum(1), torch.ones(50, dtype=torch.float64))
    assert torch.equal(corners[..., 0], points[:, :1].long().expand(50, 8))
    _, z, y, x = corners.unbind(-1)
    read = (ramp[z, y, x] * weights[..., None]).sum(1)
    limits = torch.stack([torch.stack([c[0], c[-1]]) for c in centres])
    torch.testing.assert_close(read, points[:, 1:].clamp(limits[:, 0], limits[:, 1]))


def test_interpolate_cells__a_voxel_of_the_finest_level_counts_alone() -> None:
    corners, weights = interpolate_cells((4, 5, 6), (1, 1, 1), torch.tensor([[1.0, 3, 4, 2]]))
    assert weights.max() == 1 and weights.sum() == 1
    assert corners[0, weights[0].argmax()].tolist() == [1, 3, 4, 2]


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("kind", ["unet", "fpn", "pimpic"])
def test_leave_out_finer__only_saves_what_the_other_maps_do_not_depend_on(kind: str, level: int) -> None:
    torch.manual_seed(0)
    if kind == "unet":
        strides = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
        pyramid = backbone_of(unet_configuration("PlainConvUNet", strides, [4, 4, 8, 8]), "decoder")
    else:
        pyramid = FPN3d(1, 4, 4) if kind == "fpn" else Pimpic3d(1, 4, 3, "decoder")
    x = torch.randn(2, 1, 16, 16, 16)
    whole = pyramid(x)
    trained = {name for name, p in pyramid.named_parameters() if p.requires_grad}
    sum(m.double().sum() for m in whole[level:]).backward()  # type: ignore[union-attr]
    needed = {name for name, p in pyramid.named_parameters() if p.grad is not None}
    pyramid.leave_out_finer(level)
    fewer = pyramid(x)
    assert [m.numel() == 0 for m in fewer] == [number < level for number in range(4)]
    for before, after in zip(whole[level:], fewer[level:], strict=True):
        torch.testing.assert_close(before, after)
    left = {name for name, p in pyramid.named_parameters() if p.requires_grad}
    assert left == needed and (left < trained if level else left == trained)
    assert left <= pyramid.used_tensors().keys() and not (trained - left) & pyramid.used_tensors().keys()
