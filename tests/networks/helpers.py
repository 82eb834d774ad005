from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnssl.networks.build import resolve_configuration, segmentation_of

REFERENCE = Path(__file__).parent.parent / "reference"


def load_reference(name: str) -> dict[str, Any]:
    return json.loads((REFERENCE / name).read_text())


def fill_by_rule(module: nn.Module) -> nn.Module:
    """Set every weight by the rule of arch_vectors.json, which depends on the shapes only."""
    module.double()
    with torch.no_grad():
        for layer in module.modules():
            normalises = isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.LayerNorm)
            for name, parameter in layer.named_parameters(recurse=False):
                wave = 0.05 * torch.arange(parameter.numel(), dtype=torch.float64).cos()
                constant = 1.0 if name == "weight" else 0.0
                parameter.copy_(torch.full_like(parameter, constant) if normalises else wave.reshape(parameter.shape))
    return module


def input_by_rule(shape: list[int]) -> Tensor:
    return (0.1 * torch.arange(torch.Size(shape).numel(), dtype=torch.float64)).sin().reshape(shape)


def assert_matches(output: Tensor, expected: dict[str, Any]) -> None:
    assert list(output.shape) == expected["shape"]
    flat = output.detach().flatten()
    values = [flat.sum().item(), flat.abs().sum().item(), *flat[:4].tolist(), flat[-1].item()]
    reference = [expected["sum"], expected["abs_sum"], *expected["first"], expected["last"]]
    difference = torch.tensor(values, dtype=torch.float64) - torch.tensor(reference, dtype=torch.float64)
    assert difference.abs().max() < 1e-9


def state_dict_shapes(module: nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in module.state_dict().items()}


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def unet_configuration(kind: str, strides: list[list[int]], features: list[int]) -> dict[str, Any]:
    """A 3D configuration as nnU-Net's planners write it."""
    stages = len(strides)
    per_stage = "n_conv_per_stage" if kind == "PlainConvUNet" else "n_blocks_per_stage"
    return {
        "patch_size": [8, 16, 16],
        "normalization_schemes": ["ZScoreNormalization"],
        "architecture": {
            "network_class_name": f"dynamic_network_architectures.architectures.unet.{kind}",
            "arch_kwargs": {
                "n_stages": stages,
                "features_per_stage": features,
                "conv_op": "torch.nn.modules.conv.Conv3d",
                "kernel_sizes": [[3, 3, 3]] * stages,
                "strides": strides,
                per_stage: [1] * stages,
                "n_conv_per_stage_decoder": [1] * (stages - 1),
                "conv_bias": True,
                "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
                "norm_op_kwargs": {"eps": 1e-05, "affine": True},
                "dropout_op": None,
                "dropout_op_kwargs": None,
                "nonlin": "torch.nn.LeakyReLU",
                "nonlin_kwargs": {"inplace": True},
            },
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }


def fpn_configuration(num_scales: int, base_channels: int) -> dict[str, Any]:
    return {
        "patch_size": [16, 16, 16],
        "normalization_schemes": ["CTNormalization"],
        "architecture": {
            "network_class_name": "nnssl.networks.fpn_unet.FPN3dUNet",
            "arch_kwargs": {
                "base_channels": base_channels,
                "num_scales": num_scales,
                "strides": [[1, 1, 1]] + [[2, 2, 2]] * (num_scales - 1),
            },
            "_kw_requires_import": [],
        },
    }


def build_network(plans: dict[str, Any], configuration: str, num_classes: int) -> nn.Module:
    """The segmentation network of a configuration of plans."""
    return segmentation_of(resolve_configuration(plans, configuration), num_classes)
