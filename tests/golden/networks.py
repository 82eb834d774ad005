"""Networks under the names that plans hold, built by nnU-Net as for any user of these plans."""

from __future__ import annotations

import json
from typing import Any

import torch

from tests.golden import inside
from tests.golden.compare import norms, plain, tensors
from tests.golden.world import CONFIGURATION, NETWORKS, World, patch_of

_DEEP = (
    "FPN3dUNet",
    "PimpicUNet",
    "LapnUNet",
    "UNETR",
    "NNFormer",
    "Primus",
)  # whose output may be a list of levels, as MonaiUNet's may not


def preset(name: str) -> dict[str, Any]:
    """A preset's sizes and its network, without memory."""
    content = json.loads(inside.preset_files()[name].read_text())
    configuration = content["configurations"][CONFIGURATION]
    architecture = configuration["architecture"]
    with torch.device("meta"):
        network = _build(architecture)
    return {
        "class": architecture["network_class_name"],
        "plans_keys": sorted(content),
        "configuration_keys": sorted(configuration),
        "sizes": {key: configuration[key] for key in ("batch_size", "patch_size", "spacing", "normalization_schemes")},
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "state": tensors(network.state_dict()),
    }


def small(world: World, name: str) -> dict[str, Any]:
    """A small network with seeded weights: their names and norms, and those of its logits."""
    arguments, size = NETWORKS[name]
    architecture = {"network_class_name": name, "arch_kwargs": arguments, "_kw_requires_import": []}
    with world.environment("none"):
        network = _build(architecture, deep=name.endswith(_DEEP))
        with torch.inference_mode():
            logits = network.eval()(patch_of(size))
    levels = list(logits) if isinstance(logits, (list, tuple)) else [logits]
    return {
        "state": tensors(network.state_dict()),
        "norms": plain(norms(network.state_dict())),
        "logits": [{"shape": list(level.shape), "norm": plain(float(level.double().norm()))} for level in levels],
    }


def _build(architecture: dict[str, Any], deep: bool = False) -> Any:
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    return get_network_from_plans(
        architecture["network_class_name"], architecture["arch_kwargs"], architecture["_kw_requires_import"], 1, 3,
        deep_supervision=deep,
    )  # fmt: skip
