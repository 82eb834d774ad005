from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nnssl.networks.fpn_unet import FPN3d, pyramid_channels
from nnssl.networks.heads import LinearHead, NonLinearHead, SegmentationHead, upsampled_to
from nnssl.networks.pyramid import gather_voxels
from tests.networks.helpers import (
    assert_matches,
    count_parameters,
    fill_by_rule,
    input_by_rule,
    load_reference,
    state_dict_shapes,
)


def _head(kind: type[SegmentationHead], base_channels: int, num_scales: int, num_classes: int) -> SegmentationHead:
    strides = [(2**level,) * 3 for level in range(num_scales)]
    return kind(pyramid_channels(base_channels, num_scales), strides, num_classes)


def _official_pyramid() -> list[Tensor]:
    vector = load_reference("arch_vectors.json")["vox2vec.FPN3d(1,4,3)"]
    return fill_by_rule(FPN3d(1, 4, 3)).eval()(input_by_rule(vector["input"]))


@pytest.mark.parametrize(("head", "parameters"), [(LinearHead, 13_117), (NonLinearHead, 968_029)])
def test_heads__have_the_authors_state_dict(head: type[SegmentationHead], parameters: int) -> None:
    network = _head(head, 16, 6, 13)
    assert count_parameters(network) == parameters
    assert (
        state_dict_shapes(network) == load_reference("state_dict_shapes.json")[f"vox2vec.FPN{head.__name__}(16,6,13)"]
    )


@pytest.mark.parametrize(("head", "case"), [(LinearHead, "linear_head"), (NonLinearHead, "nonlinear_head")])
def test_heads__give_the_official_logits(head: type[SegmentationHead], case: str) -> None:
    logits = fill_by_rule(_head(head, 4, 3, 2)).eval()(_official_pyramid())
    assert_matches(logits, load_reference("arch_vectors.json")[f"vox2vec.{case}(4,3,2)"]["out"])


def test_linear_head__gives_the_official_logits_of_plain_numbers() -> None:
    case = load_reference("vox2vec.json")["linear_head"]
    head = _head(LinearHead, 1, 3, 2).double()
    pyramid = []
    with torch.no_grad():
        layers = head.layers
        assert isinstance(layers, nn.ModuleList)
        for level, layer in enumerate(layers):
            assert isinstance(layer, nn.Conv3d)
            channels, size = 2**level, 4 // 2**level
            layer.weight.copy_(torch.arange(1, 1 + 2 * channels).reshape(2, channels, 1, 1, 1) / 10)
            pyramid.append(torch.arange(channels * size**3).double().reshape(1, channels, size, size, size) / 7)
            if layer.bias is not None:
                layer.bias.copy_(torch.tensor(case["bias"]))
    logits = head(pyramid)[0]
    assert logits.sum().item() == pytest.approx(case["logits_sum"], rel=1e-6)  # the weights went through float32
    for voxel, expected in case["logits_at"].items():
        z, y, x = (int(n) for n in voxel.split(","))
        assert logits[:, z, y, x].tolist() == pytest.approx(expected, rel=1e-6)


def test_linear_head__is_a_linear_classifier_of_each_voxel() -> None:
    torch.manual_seed(0)
    size = (3, 5, 4)
    backbone, head = FPN3d(1, 2, 3).double().eval(), _head(LinearHead, 2, 3, 4).double()
    pyramid = backbone(torch.randn(1, 1, *size, dtype=torch.float64))
    voxels = torch.cartesian_prod(torch.arange(1), *(torch.arange(n) for n in size))
    parameters = dict(head.named_parameters())
    weight = torch.cat([parameters[f"layers.{level}.weight"].flatten(1) for level in range(3)], dim=1)
    rows = gather_voxels(pyramid, backbone.strides, voxels) @ weight.T + parameters["layers.0.bias"]
    torch.testing.assert_close(head(pyramid)[0].flatten(1).T, rows)


@pytest.mark.parametrize("head", [LinearHead, NonLinearHead])
def test_heads__accept_odd_sizes(head: type[SegmentationHead]) -> None:
    pyramid = FPN3d(1, 4, 3)(torch.randn(2, 1, 5, 7, 3))
    logits = _head(head, 4, 3, 2)(pyramid)
    assert logits.shape == (2, 2, 5, 7, 3)
    logits.sum().backward()


@pytest.mark.parametrize("head", [LinearHead, NonLinearHead])
def test_heads__follow_anisotropic_strides(head: type[SegmentationHead]) -> None:
    strides = [(1, 1, 1), (1, 2, 2), (2, 4, 2)]
    pyramid = [torch.randn(2, c, *size) for c, size in ((3, (4, 8, 6)), (5, (4, 4, 3)), (7, (2, 2, 3)))]
    assert head([3, 5, 7], strides, 4)(pyramid).shape == (2, 4, 4, 8, 6)


def test_linear_head__takes_each_voxel_from_the_cell_that_contains_it() -> None:
    strides = [(1, 1, 1), (1, 2, 2), (2, 4, 2)]
    pyramid = [torch.randn(1, c, *size) for c, size in ((3, (4, 8, 6)), (5, (4, 4, 3)), (7, (2, 2, 3)))]
    head = LinearHead([3, 5, 7], strides, 4)
    voxels = torch.cartesian_prod(torch.arange(1), torch.arange(4), torch.arange(8), torch.arange(6))
    parameters = dict(head.named_parameters())
    weight = torch.cat([parameters[f"layers.{level}.weight"].flatten(1) for level in range(3)], dim=1)
    rows = gather_voxels(pyramid, strides, voxels) @ weight.T + parameters["layers.0.bias"]
    torch.testing.assert_close(head(pyramid)[0].flatten(1).T, rows)


def test_upsampled_to__repeats_cells_and_crops() -> None:
    cells = torch.arange(8.0).reshape(1, 1, 2, 2, 2)
    full = upsampled_to(cells, (2, 2, 2), (3, 4, 3))
    assert full.shape == (1, 1, 3, 4, 3)
    assert (full[0, 0, 2, 3, 2], full[0, 0, 1, 1, 1]) == (cells[0, 0, 1, 1, 1], cells[0, 0, 0, 0, 0])
