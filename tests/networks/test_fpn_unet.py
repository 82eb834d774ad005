from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from torch import Tensor, nn

from nnssl.core.errors import UserError
from nnssl.networks.fpn_unet import FPN3d, FPN3dUNet
from tests.networks.helpers import (
    assert_matches,
    count_parameters,
    fill_by_rule,
    fpn_configuration,
    input_by_rule,
    load_reference,
    state_dict_shapes,
)

SCALES = 4


def _network(deep_supervision: bool | None) -> Any:
    architecture = fpn_configuration(SCALES, 4)["architecture"]
    torch.manual_seed(0)
    return get_network_from_plans(
        architecture["network_class_name"],
        architecture["arch_kwargs"],
        architecture["_kw_requires_import"],
        1,
        3,
        deep_supervision=deep_supervision,
    )


@pytest.mark.parametrize("deep_supervision", [False, None])
def test_fpn_unet__gives_logits(deep_supervision: bool | None) -> None:
    network = _network(deep_supervision)
    assert isinstance(network, FPN3dUNet)
    assert network(torch.randn(2, 1, 8, 16, 16)).shape == (2, 3, 8, 16, 16)


def test_fpn_unet__gives_one_output_per_target_of_nnunet() -> None:
    network = _network(True)
    strides = fpn_configuration(SCALES, 4)["architecture"]["arch_kwargs"]["strides"]
    scales = 1 / np.cumprod(np.vstack(strides), axis=0)[:-1]  # nnUNetTrainer._get_deep_supervision_scales
    outputs = network(torch.randn(2, 1, 8, 16, 16))
    expected = [tuple(np.round(np.array([8, 16, 16]) * scale).astype(int)) for scale in scales]
    assert [tuple(output.shape[2:]) for output in outputs] == expected


def test_fpn_unet__switching_deep_supervision_keeps_the_first_output() -> None:
    network = _network(True).eval()
    x = torch.randn(1, 1, 8, 8, 8)
    deep = network(x)
    network.decoder.deep_supervision = False  # as nnUNetTrainer.set_deep_supervision_enabled does
    torch.testing.assert_close(network(x), deep[0], rtol=0, atol=0)


def test_fpn_unet__orders_segmentation_layers_as_nnunet() -> None:
    assert [layer.in_channels for layer in _network(True).decoder.seg_layers] == [16, 8, 4]


def test_fpn_unet__every_parameter_learns_under_deep_supervision() -> None:
    network = _network(True)
    sum((output**2).sum() for output in network(torch.randn(2, 1, 8, 8, 8))).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_fpn_unet__only_segmentation_layers_depend_on_the_classes() -> None:
    architecture = fpn_configuration(2, 4)["architecture"]["arch_kwargs"]
    two, five = (FPN3dUNet(1, classes, **architecture).state_dict() for classes in (2, 5))
    different = {name for name in two if two[name].shape != five[name].shape}
    assert different
    assert all(".seg_layers." in name for name in different)


@pytest.mark.parametrize("strides", [[[1, 1, 1], [1, 2, 2]], [[1, 1, 1]]])
def test_fpn_unet__refuses_other_strides(strides: list[list[int]]) -> None:
    with pytest.raises(UserError, match="strides"):
        FPN3dUNet(1, 2, base_channels=4, num_scales=2, strides=strides)


def test_fpn3d__has_the_authors_state_dict() -> None:
    with torch.device("meta"):
        network = FPN3d(1, 16, 6)
    shapes = state_dict_shapes(network)
    assert len(shapes) == 340
    assert shapes == load_reference("state_dict_shapes.json")["vox2vec.FPN3d(1,16,6)"]
    assert count_parameters(network) == 47_624_448


@pytest.mark.parametrize("case", ["vox2vec.FPN3d(1,4,3)", "vox2vec.FPN3d(1,4,3) odd size"])
def test_fpn3d__gives_the_official_maps(case: str) -> None:
    vector = load_reference("arch_vectors.json")[case]
    pyramid = fill_by_rule(FPN3d(1, 4, 3)).eval()(input_by_rule(vector["input"]))
    assert len(pyramid) == len(vector["levels"])
    for feature_map, expected in zip(pyramid, vector["levels"], strict=True):
        assert_matches(feature_map, expected)


@pytest.mark.parametrize("size", [(8, 8, 8), (1, 1, 2), (7, 10, 13)])
def test_fpn3d__describes_its_maps(size: tuple[int, int, int]) -> None:
    network = FPN3d(2, 4, 4)
    assert network.input_channels == 2
    assert network.channels == (4, 8, 16, 32)
    assert network.strides == ((1, 1, 1), (2, 2, 2), (4, 4, 4), (8, 8, 8))
    for feature_map, channels, stride in zip(
        network(torch.randn(2, 2, *size)), network.channels, network.strides, strict=True
    ):
        assert feature_map.shape == (2, channels, *(-(-n // s) for n, s in zip(size, stride, strict=True)))


@pytest.mark.parametrize("input_channels", [1, 2])
def test_fpn3d__keeps_few_channels_last_and_many_in_the_default_layout(input_channels: int) -> None:
    network = FPN3d(input_channels, 128, 3)
    pyramid = network(torch.randn(2, input_channels, 8, 8, 8))
    layouts = [torch.channels_last_3d, torch.contiguous_format, torch.contiguous_format]
    assert all(m.is_contiguous(memory_format=layout) for m, layout in zip(pyramid, layouts, strict=True))


@pytest.fixture
def _two_threads() -> Iterator[None]:
    """With one thread, torch runs 1x1x1 convolutions by code that knows the default layout only."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_two_threads")
def test_fpn3d__no_layer_leaves_the_layout() -> None:
    network = FPN3d(1, 16, 2)
    seen: list[str] = []
    wrong: list[str] = []

    def check(tensor: Tensor, name: str) -> None:
        seen.append(name)
        if not tensor.is_contiguous(memory_format=torch.channels_last_3d):
            wrong.append(name)

    def check_output(_layer: nn.Module, _inputs: Any, output: Tensor, name: str) -> None:
        check(output, name)
        output.register_hook(partial(check, name=f"gradient of {name}"))

    leaves = [(name, layer) for name, layer in network.named_modules() if not list(layer.children())]
    for name, layer in leaves:
        layer.register_forward_hook(partial(check_output, name=name))
    sum((m**2).sum() for m in network(torch.randn(2, 1, 16, 16, 16))).backward()
    assert len(seen) == 2 * len(leaves)
    # torch's backward pass of nearest upsampling writes its result, the smaller map, in the default layout.
    assert [name for name in wrong if not name.startswith("gradient of up_blocks")] == []


def test_fpn3d__gradient_is_right() -> None:
    torch.manual_seed(0)
    network = FPN3d(1, 2, 2).double()
    x = torch.randn(2, 1, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: tuple(network(v)), (x,))


def test_fpn3d__encoder_levels_leave_no_parameter_unused() -> None:
    network = FPN3d(1, 4, 3, levels="encoder")
    pyramid = network(torch.randn(2, 1, 8, 8, 8))
    assert [m.shape[1] for m in pyramid] == [4, 8, 16]
    sum((m**2).sum() for m in pyramid).backward()
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name


def test_fpn3d__encoder_levels_enter_the_decoder() -> None:
    encoder, whole = FPN3d(1, 4, 3, levels="encoder").eval(), FPN3d(1, 4, 3).eval()
    whole.load_state_dict(encoder.state_dict())
    x = torch.randn(1, 1, 8, 8, 8)
    torch.testing.assert_close(encoder(x)[-1], whole(x)[-1], rtol=0, atol=0)


def test_check_patch__takes_any_size_with_two_values() -> None:
    network = FPN3d(1, 4, 6)
    network.check_patch([7, 33, 90])
    network.check_patch([1, 1, 2])
    with pytest.raises(UserError, match="larger batch"):
        network.check_patch([32, 32, 32], batch_size=1)
    with pytest.raises(UserError, match="one voxel"):
        network.check_patch([1, 1, 1])
    network.check_patch([32, 32, 33], batch_size=1)
    network(torch.randn(1, 1, 32, 32, 33))
