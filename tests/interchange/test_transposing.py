from __future__ import annotations

import pytest
import torch
from torch import nn

from nnssl.interchange.transposing import transposed_kernels
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
