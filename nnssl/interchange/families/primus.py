"""Primus of exchange checkpoints (`exchange`): the tokens and their blocks, without the up-projection."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nnssl.core.errors import UserError
from nnssl.interchange.family import without_prefixes

# Width, depth and heads of each size (Wald et al., arXiv 2503.01835).
SIZES = {"PrimusS": (396, 12, 6), "PrimusB": (792, 12, 12), "PrimusM": (864, 16, 12), "PrimusL": (1056, 24, 16)}
_TOKEN = 8  # voxels along each axis
_KEPT = ("eva.", "down_projection.")


def is_primus(name: str) -> bool:
    """Whether an adaptation plan's class is a Primus, also one of a version that is not read."""
    return name.startswith("Primus")


def primus_architecture(name: str, plan: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The network as plans name it; raises UserError for sizes and versions that are not read."""
    if name not in SIZES:
        raise UserError(f"{path} holds the network {name}; of these, {', '.join(SIZES)} can be read")
    width, depth, heads = SIZES[name]
    configurations = plan.get("pretrain_plan", {}).get("configurations", {})
    first: Mapping[str, Any] = next(iter(configurations.values()), {})
    seen = plan.get("pretrain_patch_size") or first.get("patch_size") or plan.get("recommended_downstream_patchsize")
    kwargs = {
        "input_shape": [int(n) for n in seen or ()],
        "patch_embed_size": [_TOKEN] * 3,
        "embed_dim": width,
        "eva_depth": depth,
        "eva_numheads": heads,
        "init_values": 0.1,
        "scale_attn_inner": True,
        "drop_path_rate": 0.2,
        "strides": [[1, 1, 1], *[[2, 2, 2]] * (_TOKEN.bit_length() - 1)],
    }
    return {"network_class_name": "nnssl.networks.primus.Primus", "arch_kwargs": kwargs}


def primus_state(
    tensors: Mapping[str, Tensor], plan: Mapping[str, Any], path: Path
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by the names of our backbone, and the others with the reason; UserError for register tokens."""
    if any(name.endswith("register_tokens") for name in tensors):
        raise UserError(f"{path} holds a Primus with register tokens, which cannot be read; take one without them")
    start = str(plan.get("key_to_encoder", "eva")).removesuffix("eva")  # "encoder." where a method wraps the network
    state: dict[str, Tensor] = {}
    left: dict[str, str] = {}
    for name, tensor in without_prefixes(tensors, "module.", "_orig_mod.").items():
        short = name.removeprefix(start)
        if name.startswith(start) and short.startswith(_KEPT):
            state[f"network.{short}"] = tensor
        else:
            left[name] = "a head of the pretraining"
    return state, left
