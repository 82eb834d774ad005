from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from nnssl.networks.unet3d import UNet3DPyramid
from tests.networks.helpers import count_parameters


def test_unet3d__has_the_published_size() -> None:
    with torch.device("meta"):
        pyramid = UNet3DPyramid(levels="decoder")
    head = 64 * 25 + 25  # of the 25 classes of AbdomenAtlas 1.1
    assert round((count_parameters(pyramid) + head) / 1e6, 2) == 19.08
    assert pyramid.channels == (64, 128, 256, 512)


def _two(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Two convolutions of the published network, whose batch norm takes the statistics of the one volume."""
    for number in range(2):
        conv, norm = f"{name}.ops.{number}.conv1", f"{name}.ops.{number}.bn1"
        x = F.conv3d(x, state[f"{conv}.weight"], state[f"{conv}.bias"], padding=1)
        running = torch.zeros(x.shape[1]), torch.ones(x.shape[1])
        x = F.relu(F.batch_norm(x, *running, state[f"{norm}.weight"], state[f"{norm}.bias"], training=True))
    return x


def test_pyramid__is_the_published_network() -> None:
    torch.manual_seed(0)
    pyramid = UNet3DPyramid(base_channels=4, levels="decoder").eval()
    with torch.no_grad():
        for parameter in pyramid.parameters():
            parameter.normal_(std=0.2)
    state = {name: tensor.detach() for name, tensor in pyramid.state_dict().items()}
    x = volume = torch.randn(1, 1, 16, 8, 24)
    maps = []
    for number, width in enumerate((64, 128, 256, 512)):
        x = _two(state, f"down_tr{width}", F.max_pool3d(x, 2) if number else x)
        maps.append(x)
    expected = maps[-1:]
    for width, skip in zip((256, 128, 64), maps[-2::-1], strict=True):
        name = f"up_tr{width}.up_conv"
        x = F.conv_transpose3d(expected[-1], state[f"{name}.weight"], state[f"{name}.bias"], stride=2)
        expected.append(_two(state, f"up_tr{width}", torch.cat([x, skip], dim=1)))
    encoder = UNet3DPyramid(base_channels=4)
    encoder.load_state_dict(pyramid.state_dict())
    with torch.no_grad():
        found = [*pyramid(volume), *encoder(volume)]
    for mine, theirs in zip(found, [*expected[::-1], *maps], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
