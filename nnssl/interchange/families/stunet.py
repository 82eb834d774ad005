"""STU-Net S, B, L and H, trained on TotalSegmentator with nnU-Net: axes z, y, x, a z-score of each image."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from typing import Any

from torch import Tensor

from nnssl.checkpoints.imported import Weights
from nnssl.checkpoints.nnunet_model import is_nnunet, nnunet_weights
from nnssl.interchange.family import CONFIGURATION, Family, Imported, dataset_json_of, plans_of
from nnssl.interchange.names import below, left_of, numbered
from nnssl.interchange.opening import Opened
from nnssl.networks.build import resolve_configuration
from nnssl.networks.pyramid import Levels

_SIGN = "conv_blocks_context.0.0.conv1.weight"
_NETWORK = "nnssl.networks.stunet.STUNet"
_DECODER = ("upsample_layers.", "conv_blocks_localization.")
_PUBLISHED = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 1, 2]]  # strides of the authors' plans
_SIZES = {(16, 1): "S", (32, 1): "B", (64, 2): "L", (96, 3): "H"}  # by width and blocks of the first stage


def _recognises(opened: Opened) -> bool:
    """Those of the authors' trainers, whose plans name the network that the trainer replaced; not our own."""
    return below(opened.tensors, _SIGN) is not None and _NETWORK not in str(_trained_with(opened))


def _trained_with(opened: Opened) -> dict[str, Any] | None:
    """`init_args` of a checkpoint of nnU-Net's second version, with the plans and the configuration's name."""
    return opened.rest["init_args"] if is_nnunet({**opened.rest, "network_weights": opened.tensors}) else None


def _read(opened: Opened) -> Imported:
    found = below(opened.tensors, _SIGN)
    assert found is not None
    state = {n: t for n, t in found.inside.items() if n.startswith(("conv_blocks_context.", *_DECODER))}
    stages = numbered(state, "conv_blocks_context.")
    dims = [len(state[f"conv_blocks_context.{stage}.0.conv1.weight"]) for stage in range(stages)]
    depth = [numbered(state, f"conv_blocks_context.{stage}.") for stage in range(stages)]
    kwargs: dict[str, Any] = {"dims": dims, "depth": depth, "strides": _strides(opened, stages)}
    architecture = {"network_class_name": _NETWORK, "arch_kwargs": kwargs, "_kw_requires_import": []}
    levels: Levels = "decoder" if any(name.startswith(_DECODER) for name in state) else "encoder"
    taken = {f"{found.prefix}{name}" for name in state}
    left = left_of((n for n in opened.tensors if n not in taken), {"seg_outputs.": "a segmentation layer"},
                   "no part of an STU-Net")  # fmt: skip
    size = _SIZES.get((dims[0], depth[0]), f"of width {dims[0]}")
    return Imported(
        _weights(opened, architecture, levels, state),
        title=f"STU-Net-{size}" if len(size) == 1 else f"STU-Net {size}",
        licence="Apache-2.0",
        citation="Huang et al., STU-Net: Scalable and Transferable Medical Image Segmentation Models Empowered by "
        "Large-Scale Supervised Pre-training, 2023",
        url="https://github.com/uni-medical/STU-Net",
        left=left,
    )


def _weights(opened: Opened, architecture: dict[str, Any], levels: Levels, state: dict[str, Tensor]) -> Weights:
    """With the checkpoint's own plans, or with those of the published weights."""
    if (trained := _trained_with(opened)) is None:
        channels = state[_SIGN].shape[1]
        plans = plans_of("nnsslPlans_stunet", architecture, (1.5, 1.5, 1.5), (128, 128, 128), channels=channels)
        return Weights(plans, CONFIGURATION, levels, state, dataset_json_of(*["CT"] * channels))
    plans, name = deepcopy(trained["plans"]), trained["configuration"]
    plans["configurations"] = {name: {**resolve_configuration(plans, name), "architecture": architecture}}
    content = {**opened.rest, "init_args": {**trained, "plans": plans}, "network_weights": state}
    return replace(nnunet_weights(content, opened.path), levels=levels)


def _strides(opened: Opened, stages: int) -> list[list[int]]:
    """Of each stage to the one before. The authors' trainers cut or fill those of their plans."""
    if (trained := _trained_with(opened)) is None:
        return _PUBLISHED if stages == len(_PUBLISHED) else [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1)
    resolved = resolve_configuration(trained["plans"], trained["configuration"])
    kwargs = resolved.get("architecture", {}).get("arch_kwargs", {})
    planned = [[int(n) for n in stride] for stride in kwargs.get("strides") or resolved["pool_op_kernel_sizes"]]
    return (planned + [[1, 1, 1]] * stages)[:stages]


FAMILY = Family(
    "stunet", "STU-Net S, B, L, H (TotalSegmentator CT, 1.5 mm, z-score)", "Apache-2.0", _recognises, _read
)  # fmt: skip
