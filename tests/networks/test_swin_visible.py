from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from nnssl.core.pretended_card import CARD, pretended_card
from nnssl.networks.pyramid import BlockMask, spread
from nnssl.networks.swin import SwinPyramid
from nnssl.networks.swin_visible import cut_blocks, paste_blocks, run_layer, visible_stages, visible_windows
from tests.cards import pretends_a_card

Place = tuple[int, ...]


def _mask(grid: tuple[int, int, int], visible: int, batch: int = 2) -> BlockMask:
    generator = torch.Generator().manual_seed(3)
    blocks = grid[0] * grid[1] * grid[2]
    chosen = torch.stack([torch.randperm(blocks, generator=generator)[:visible].sort().values for _ in range(batch)])
    hidden = torch.ones(batch, blocks, dtype=torch.bool).scatter(1, chosen, False)
    return BlockMask(hidden.view(batch, *grid), chosen)


def _transformer(window: int, **options: Any) -> Any:
    torch.manual_seed(0)
    transformer: Any = SwinPyramid(1, 12, (2, 2, 2, 1), window_size=window, **options).swinViT.double()
    with torch.no_grad():  # a bias that is 0 or a table of equal values would hide mistakes
        for name, parameter in transformer.named_parameters():
            if "bias" in name:
                parameter.normal_(std=0.5)
    return transformer.eval()


def _plain_block(block: Any, tokens: dict[Place, Tensor], size: Place, shift: Place) -> dict[Place, Tensor]:
    """A block on the tokens of one volume, window by window: every token asks those that share its window."""
    attention = block.attn
    side = [min(n, w) for n, w in zip(size, attention.window_size, strict=True)]
    moved = [s if n > w else 0 for n, w, s in zip(size, attention.window_size, shift, strict=True)]

    def window(place: Place) -> Place:  # the shift's windows begin `moved` cells after the plain ones
        return tuple((p - m) // w for p, m, w in zip(place, moved, side, strict=True))

    def number(place: Place) -> int:
        z, y, x = ((p - m) % w for p, m, w in zip(place, moved, side, strict=True))
        return (z * side[1] + y) * side[2] + x

    heads, result = attention.num_heads, {}
    normed = {place: block.norm1(token) for place, token in tokens.items()}
    for place, token in tokens.items():
        others = [other for other in tokens if window(other) == window(place)]
        query = attention.qkv(normed[place]).view(3, heads, -1)[0]
        triples = [attention.qkv(normed[other]).view(3, heads, -1) for other in others]
        index = [attention.relative_position_index[number(place), number(other)] for other in others]
        bias = attention.relative_position_bias_table[torch.stack(index)]  # (others, heads)
        scores = torch.stack([(query * key).sum(-1) for _, key, _ in triples]) * attention.scale + bias
        value = (scores.softmax(0)[..., None] * torch.stack([value for _, _, value in triples])).sum(0).flatten()
        found = token + attention.proj(value)
        result[place] = found + block.mlp(block.norm2(found))
    return result


def _plain_layer(layer: Any, tokens: dict[Place, Tensor], size: Place) -> dict[Place, Tensor]:
    for number, block in enumerate(layer.blocks):
        tokens = _plain_block(block, tokens, size, layer.shift_size if number % 2 else layer.no_shift)
    corners = list(product(range(2), repeat=3))
    merged = {}  # by MONAI's own layer, whose corners are others from release to release
    for place in {tuple(p // 2 for p in place) for place in tokens}:
        cube = [tokens[tuple(2 * p + c for p, c in zip(place, corner, strict=True))] for corner in corners]
        merged[place] = layer.downsample(torch.stack(cube).view(1, 2, 2, 2, -1)).flatten()
    return merged


@pytest.mark.parametrize(("window", "cells"), [(3, 4), (5, 4), (7, 2)])
def test_run_layer__is_a_plain_loop_over_the_visible_tokens(window: int, cells: int) -> None:
    """Windows that a block fills in part, that reach beyond the edge, and that are larger than an axis; shifted too."""
    layer, mask = _transformer(window).layers1[0], _mask((1, 3, 2), 2)
    blocks = torch.randn(4, 12, cells, cells, cells, dtype=torch.float64)
    with torch.no_grad():
        found = paste_blocks(run_layer(layer, blocks, mask), mask)
        whole, seen = paste_blocks(blocks, mask), ~spread(mask.hidden, (cells, 3 * cells, 2 * cells))[:, 0]
        for volume in range(2):
            places: list[list[int]] = seen[volume].nonzero().tolist()
            tokens: dict[Place, Tensor] = {(z, y, x): whole[volume, :, z, y, x] for z, y, x in places}
            expected = _plain_layer(layer, tokens, tuple(seen.shape[1:]))
            assert len(expected) == 2 * (cells // 2) ** 3
            for place, token in expected.items():
                z, y, x = place
                torch.testing.assert_close(found[volume, :, z, y, x], token, atol=1e-10, rtol=0)


@pytest.mark.parametrize("use_v2", [False, True])
def test_visible_stages__with_nothing_hidden_are_monais(use_v2: bool) -> None:
    transformer, mask = _transformer(4, use_v2=use_v2), _mask((2, 1, 2), 4)
    image = torch.randn(2, 1, 64, 32, 64, dtype=torch.float64)
    with torch.no_grad():
        for stage, whole in zip(visible_stages(transformer, image, mask), transformer(image), strict=True):
            torch.testing.assert_close(stage, whole, atol=1e-10, rtol=0)


@pytest.mark.parametrize("use_v2", [False, True])
def test_masked_levels__hidden_voxels_change_nothing(use_v2: bool) -> None:
    torch.manual_seed(0)
    pyramid, mask = SwinPyramid(1, 12, (2, 1, 1, 1), window_size=3, use_v2=use_v2), _mask((1, 2, 3), 2)
    image = torch.randn(2, 1, 32, 64, 96)
    hidden = spread(mask.hidden, image.shape[2:])
    with torch.no_grad():
        before = pyramid.masked_levels(image, mask)
        after = pyramid.masked_levels(torch.where(hidden, torch.full_like(image, torch.nan), image), mask)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not torch.equal(before[-1], pyramid.masked_levels(image + (~hidden).float(), mask)[-1])


def test_masked_levels__recomputing_changes_no_gradient() -> None:
    plain, recomputed = (SwinPyramid(1, 12, (2, 1, 1, 1), window_size=3, use_checkpoint=c) for c in (False, True))
    recomputed.load_state_dict(plain.state_dict())
    image, mask, gradients = torch.randn(1, 1, 32, 64, 32), _mask((1, 2, 1), 1, 1), []
    for pyramid in (plain, recomputed):
        pyramid.masked_levels(image, mask)[-1].square().sum().backward()
        gradients.append(pyramid.swinViT.patch_embed.proj.weight.grad)
    torch.testing.assert_close(*gradients)


def test_visible_windows__a_quarter_of_the_tokens_costs_far_less_than_all() -> None:
    def pairs(visible: int) -> int:
        rows = visible_windows(_mask((2, 6, 6), visible, 1), (4, 4, 4), (7, 7, 7), (3, 3, 3))
        assert sum(len(row.kept) for row in rows) == visible * 64
        return sum(row.filled.shape[0] * row.filled.shape[1] ** 2 for row in rows)

    assert pairs(18) < 0.2 * pairs(72), "pairs of tokens that attend to each other, those filled up among them"


@pretends_a_card
def test_visible_windows__on_a_card_the_host_waits_for_nothing() -> None:
    made = _mask((2, 3, 3), 5)
    with pretended_card() as card:
        mask = BlockMask(card.empty_like(made.hidden), card.empty_like(made.visible), on_host=made.hidden)
        rows = visible_windows(mask, (4, 4, 4), (7, 7, 7), (3, 3, 3))
        assert sum(len(row.kept) for row in rows) == 2 * 5 * 64
        assert cut_blocks(card.empty_like(torch.empty(2, 1, 8, 12, 12)), mask).device == CARD
    assert not card.waits, [str(wait) for wait in card.waits]


def test_paste_blocks__is_the_inverse_of_cut_blocks() -> None:
    mask, volumes = _mask((1, 2, 3), 4), torch.randn(2, 3, 5, 4, 9)
    expected = volumes.masked_fill(spread(mask.hidden, volumes.shape[2:]), 0)
    assert torch.equal(paste_blocks(cut_blocks(volumes, mask), mask), expected)
