from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nnssl.core.errors import UserError
from nnssl.methods.shared.block_tokens import BlockTokens, LightDecoder, block_size, sine_positions
from nnssl.methods.shared.hidden_blocks import visible_blocks
from nnssl.networks.build import backbone_of
from nnssl.networks.fpn_unet import FPN3d
from nnssl.networks.pyramid import BlockMask, FeaturePyramid, spread
from nnssl.networks.swin import SwinPyramid
from nnssl.networks.vit import ViTPyramid
from tests.networks.helpers import unet_configuration

UNET_STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2]]  # in all 4, 16, 16


class Levels(FeaturePyramid):
    """A network that only has a shape."""

    def __init__(self, *strides: tuple[int, int, int]) -> None:
        super().__init__([1] * len(strides), strides, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Nothing."""
        return []


def _backbone(kind: str) -> FeaturePyramid:
    torch.manual_seed(0)
    if kind == "vit":
        return ViTPyramid(1, (32, 32, 64), 4, 24, 32, 3, 4)
    if kind == "swin":
        return SwinPyramid(1, 12, (1, 1, 1, 1), window_size=2)
    if kind == "fpn":
        return FPN3d(1, 4, 4, levels="encoder")
    return backbone_of(unet_configuration("PlainConvUNet", UNET_STRIDES, [4, 4, 8, 8, 8]), "encoder")


def _mask(grid: tuple[int, int, int], seed: int = 0) -> BlockMask:
    generator = torch.Generator().manual_seed(seed)
    blocks = grid[0] * grid[1] * grid[2]
    hidden = torch.zeros(2, blocks, dtype=torch.bool)
    for row in hidden:
        row[torch.randperm(blocks, generator=generator)[: blocks // 2]] = True
    hidden = hidden.view(2, *grid)
    return BlockMask(hidden, visible_blocks(hidden, 0.5))


@pytest.mark.parametrize(
    ("strides", "patch", "expected"),
    [
        ([(1, 1, 1), (16, 16, 16)], (64, 192, 192), (16, 16, 16)),
        ([(1, 1, 1), (8, 8, 8), (32, 32, 32)], (64, 96, 96), (16, 16, 16)),
        ([(1, 1, 1), (2, 2, 2), (4, 4, 4)], (8, 16, 16), (8, 8, 8)),
        ([(1, 1, 1), (4, 32, 32)], (28, 256, 224), (4, 16, 16)),
        ([(1, 1, 1), (4, 32, 32)], (20, 320, 256), (4, 16, 16)),
        ([(1, 1, 1), (2, 8, 8)], (14, 160, 160), (14, 8, 8)),
    ],
)
def test_block_size__is_the_coarsest_stride_from_8_to_16_where_the_patch_allows(
    strides: Any, patch: Any, expected: Any
) -> None:
    assert block_size(Levels(*strides), patch, None) == expected


def test_block_size__takes_what_is_wanted_or_says_what_fits() -> None:
    assert block_size(Levels((1, 1, 1), (4, 4, 4)), (32, 32, 32), (4, 8, 16)) == (4, 8, 16)
    with pytest.raises(UserError, match=r"mask_block to one of 1/2/4/8/16/32 x "):
        block_size(Levels((1, 1, 1), (4, 4, 4)), (32, 32, 32), (12, 8, 8))
    with torch.device("meta"), pytest.raises(UserError, match="to one of 16 x 16 x 16"):
        block_size(_backbone("vit"), (32, 32, 64), (32, 16, 16))


@pytest.mark.parametrize("kind", ["vit", "swin", "fpn", "unet"])
def test_block_tokens__one_a_block_and_hidden_voxels_do_not_matter(kind: str) -> None:
    backbone, size = _backbone(kind).eval(), (32, 32, 64)
    block = block_size(backbone, size, None)
    z, y, x = (n // b for n, b in zip(size, block, strict=True))
    grid = (z, y, x)
    tokens, mask = BlockTokens(backbone, 10), _mask(grid)
    image = torch.randn(2, 1, *size)
    hidden = spread(mask.hidden, size)
    other = torch.where(hidden, torch.randn_like(image), image)
    before, after = (tokens(backbone, volumes, grid, mask) for volumes in (image, other))
    assert before.shape == (2, z * y * x, 24 if kind == "vit" else 10) and tokens.width == before.shape[2]
    seen = ~mask.hidden.flatten(1)
    torch.testing.assert_close(before[seen], after[seen], rtol=0, atol=0)
    assert not torch.allclose(tokens(backbone, image, grid)[seen], before[seen])


@pytest.mark.parametrize("kind", ["vit", "swin", "fpn", "unet"])
def test_block_tokens__the_whole_encoder_and_nothing_else_learns_from_visible_tokens(kind: str) -> None:
    backbone, size = _backbone(kind), (32, 32, 64)
    grid = tuple(n // b for n, b in zip(size, block_size(backbone, size, None), strict=True))
    tokens, mask = BlockTokens(backbone, 10), _mask(grid)  # type: ignore[arg-type]
    read = tokens(backbone, torch.randn(2, 1, *size), grid, mask)
    visible = read.gather(1, mask.visible[..., None].expand(-1, -1, tokens.width))
    (visible * torch.randn_like(visible)).sum().backward()
    used = backbone.used_tensors()
    learning = {name for name, p in backbone.named_parameters() if p.grad is not None}
    assert learning == {name for name, p in backbone.named_parameters() if name in used}
    assert all(p.grad is not None for p in tokens.parameters())


def test_block_size__of_a_swin_transformer_is_its_coarsest_stride() -> None:
    with torch.device("meta"):
        backbone = _backbone("swin")
    assert block_size(backbone, (64, 192, 192), None) == (32, 32, 32)
    assert block_size(backbone, (64, 192, 192), (64, 32, 96)) == (64, 32, 96)
    with pytest.raises(UserError, match="to one of 32/64 x 32/64/96/192 x "):
        block_size(backbone, (64, 192, 192), (16, 16, 16))


def test_block_tokens__finer_levels_are_averaged_and_coarser_ones_repeated() -> None:
    from nnssl.methods.shared.block_tokens import _to_grid

    level = torch.randn(2, 3, 4, 8, 2)
    gridded = _to_grid(level, (4, 2, 6))
    expected = level.unflatten(3, (2, 4)).mean(4).repeat_interleave(3, dim=4)
    torch.testing.assert_close(gridded, expected)


def test_light_decoder__puts_visible_tokens_to_their_places() -> None:
    torch.manual_seed(0)
    decoder = LightDecoder(6, 20, 12, 1, 2).eval()
    visible, places = torch.randn(2, 3, 6), torch.tensor([[0, 4, 7], [1, 2, 3]])
    decoded = decoder(visible, places, (2, 2, 2))
    assert decoded.shape == (2, 8, 12) and decoder.predict(decoded).shape == (2, 8, 20)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(decoder(visible[:, order], places[:, order], (2, 2, 2)), decoded)
    assert not torch.allclose(decoder(visible, places.flip(1), (2, 2, 2)), decoded)
    assert decoder(visible, places, (1, 4, 5)).shape == (2, 20, 12), "any grid will do"


@pytest.mark.parametrize("width", [12, 16, 384])
def test_sine_positions__all_places_differ(width: int) -> None:
    positions = sine_positions((2, 3, 4), width)
    assert positions.shape == (24, width) and positions.abs().max() <= 1
    distances = torch.cdist(positions, positions) + torch.eye(24)
    assert distances.min() > 1e-3
    torch.testing.assert_close(positions.view(2, 3, 4, width)[1, 2, 3, :1], torch.ones(1).sin())
