from __future__ import annotations

import pytest
import torch
from torch import nn

from nnssl.interchange.transposing import (
    transposed_kernels,
    transposed_patch_embedding,
    transposed_tokens,
    transposed_window_table,
)
from nnssl.networks.fpn_unet import FPN3d

_MIXED = [nn.Conv3d(2, 3, (3, 1, 5), padding=(1, 0, 2)), nn.ReLU(), nn.ConvTranspose3d(3, 2, (2, 2, 2), 2)]
_MIXED_TURNED = [nn.Conv3d(2, 3, (5, 1, 3), padding=(2, 0, 1)), nn.ReLU(), nn.ConvTranspose3d(3, 2, 2, 2)]


@pytest.mark.parametrize(
    ("network", "turned"),
    [(FPN3d(2, 2, 3), FPN3d(2, 2, 3)), (nn.Sequential(*_MIXED), nn.Sequential(*_MIXED_TURNED))],
    ids=["FPN3d", "transposed convolution"],
)
def test_transposed_kernels__a_turned_network_gives_the_turned_output(network: nn.Module, turned: nn.Module) -> None:
    turned.load_state_dict(transposed_kernels(network.state_dict()))
    network.eval()
    turned.eval()
    x = torch.randn(1, 2, 5, 8, 6)
    for expected, found in zip(network(x), turned(x.transpose(2, 4)), strict=True):
        torch.testing.assert_close(found.transpose(-3, -1), expected, atol=1e-5, rtol=1e-5)


def test_transposed_tokens__follow_their_cells() -> None:
    grid = torch.arange(2 * 3 * 4.0).reshape(1, 2, 3, 4, 1).expand(1, 2, 3, 4, 5)
    turned = transposed_tokens(grid.reshape(1, 24, 5), (2, 3, 4))
    assert torch.equal(turned.reshape(1, 4, 3, 2, 5), grid.transpose(1, 3))


def test_transposed_window_table__is_indexed_by_turned_offsets() -> None:
    table = torch.arange(3 * 5 * 3.0)[:, None].repeat(1, 2)
    turned = transposed_window_table(table, (2, 3, 2))
    for x, y, z in ((0, 4, 2), (2, 1, 0), (1, 2, 2)):
        assert torch.equal(turned[(z * 5 + y) * 3 + x], table[(x * 5 + y) * 3 + z])


def test_transposed_patch_embedding__gives_the_same_token() -> None:
    kernel, patch = torch.randn(7, 2 * 4 * 3 * 2), torch.randn(2, 4, 3, 2)
    turned = transposed_patch_embedding(kernel, (2, 4, 3), 2)
    torch.testing.assert_close(turned @ patch.transpose(0, 2).reshape(-1), kernel @ patch.reshape(-1))
