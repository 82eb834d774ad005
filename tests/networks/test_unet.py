from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnssl.core.errors import UserError
from nnssl.networks.unet import UNetPyramid
from tests.networks.helpers import build_network, unet_configuration

KINDS = ["PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet"]
STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
FEATURES = [4, 6, 8]


def _network(kind: str, strides: list[list[int]] = STRIDES, **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    configuration = unet_configuration(kind, strides, FEATURES)
    configuration["architecture"]["arch_kwargs"].update(arguments)
    return build_network({"configurations": {"3d_fullres": configuration}}, "3d_fullres", 2)


def _features_inside(network: Any, x: Tensor) -> list[Tensor]:
    """The maps that the network itself computes, finest first: decoder stages, then the bottleneck."""
    seen: list[Tensor] = []
    stages = [network.encoder.stages[-1], *network.decoder.stages]
    hooks = [stage.register_forward_hook(lambda *call: seen.append(call[-1])) for stage in stages]
    network(x)
    for hook in hooks:
        hook.remove()
    return seen[::-1]


@pytest.mark.parametrize("kind", KINDS)
def test_unet_pyramid__decoder_levels_are_those_of_nnunet(kind: str) -> None:
    network = _network(kind)
    x = torch.randn(2, 1, 4, 8, 12)
    pyramid = UNetPyramid(network, "decoder")
    torch.testing.assert_close(pyramid(x), _features_inside(network, x), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_unet_pyramid__encoder_levels_are_those_of_nnunet(kind: str) -> None:
    network: Any = _network(kind)
    x = torch.randn(2, 1, 4, 8, 12)
    torch.testing.assert_close(UNetPyramid(network, "encoder")(x), network.encoder(x), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", ["encoder", "decoder"])
@pytest.mark.parametrize("first_stride", [[1, 1, 1], [1, 2, 2]])
def test_unet_pyramid__describes_its_maps(kind: str, levels: Any, first_stride: list[int]) -> None:
    pyramid = UNetPyramid(_network(kind, [first_stride, *STRIDES[1:]]), levels)
    y = first_stride[1]
    assert pyramid.strides == ((1, y, y), (1, 2 * y, 2 * y), (2, 4 * y, 4 * y))
    assert pyramid.channels == (4, 6, 8)
    assert pyramid.input_channels == 1
    size = (4, 16, 24)
    for feature_map, channels, stride in zip(
        pyramid(torch.randn(1, 1, *size)), pyramid.channels, pyramid.strides, strict=True
    ):
        assert feature_map.shape == (1, channels, *(n // s for n, s in zip(size, stride, strict=True)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("levels", ["encoder", "decoder"])
def test_unet_pyramid__every_trained_parameter_takes_part(kind: str, levels: Any) -> None:
    pyramid = UNetPyramid(_network(kind), levels)
    sum((feature_map**2).sum() for feature_map in pyramid(torch.randn(1, 1, 4, 8, 8))).backward()
    for name, parameter in pyramid.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
    encoder = [p for name, p in pyramid.named_parameters() if name.startswith("network.encoder")]
    assert encoder
    assert all(parameter.requires_grad for parameter in encoder)


def test_unet_pyramid__state_dict_is_the_networks() -> None:
    network = _network("PlainConvUNet")
    assert set(UNetPyramid(network, "encoder").state_dict()) == {f"network.{name}" for name in network.state_dict()}


def test_unet_pyramid__refuses_two_dimensions() -> None:
    flat = _network(
        "PlainConvUNet",
        [[1, 1], [2, 2], [2, 2]],
        conv_op="torch.nn.modules.conv.Conv2d",
        norm_op="torch.nn.modules.instancenorm.InstanceNorm2d",
        kernel_sizes=[[3, 3]] * 3,
    )
    with pytest.raises(UserError, match="two-dimensional"):
        UNetPyramid(flat, "decoder")


def test_unet_pyramid__refuses_an_unknown_decoder() -> None:
    network: Any = _network("PlainConvUNet")
    network.decoder = nn.Identity()
    with pytest.raises(UserError, match="PlainConvUNet or ResidualEncoderUNet"):
        UNetPyramid(network, "decoder")


def test_check_patch__names_the_nearest_sizes() -> None:
    pyramid = UNetPyramid(_network("PlainConvUNet"), "decoder")
    pyramid.check_patch([4, 8, 8])
    with pytest.raises(UserError, match="use 4,8,8 or 6,12,8"):
        pyramid.check_patch([5, 10, 8])
    with pytest.raises(UserError, match="use 2,4,8"):
        pyramid.check_patch([1, 4, 4])


def test_check_patch__refuses_one_voxel_under_instance_normalisation() -> None:
    pyramid = UNetPyramid(_network("PlainConvUNet"), "decoder")
    with pytest.raises(UserError, match="use 2,4,8"):
        pyramid.check_patch([2, 4, 4])
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        pyramid(torch.randn(2, 1, 2, 4, 4))
    for patch in ([4, 4, 4], [2, 8, 4], [2, 4, 8]):
        pyramid.check_patch(patch)
        pyramid(torch.randn(2, 1, *patch))


def test_check_patch__one_voxel_under_batch_normalisation_needs_two_patches() -> None:
    network = _network("PlainConvUNet", norm_op="torch.nn.modules.batchnorm.BatchNorm3d")
    pyramid = UNetPyramid(network, "decoder")
    pyramid.check_patch([2, 4, 4], batch_size=2)
    pyramid(torch.randn(2, 1, 2, 4, 4))
    with pytest.raises(UserError, match="use 2,4,8"):
        pyramid.check_patch([2, 4, 4], batch_size=1)
