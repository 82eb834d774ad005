"""The exchange checkpoint of nnU-Net's development version: `network_weights` with an adaptation plan beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nnssl.checkpoints.imported import Weights
from nnssl.checkpoints.nnunet_model import res_enc_l
from nnssl.core.errors import UserError
from nnssl.core.files import checked
from nnssl.core.found_by_nnunet import why_not_found
from nnssl.core.plans_schema import AdaptationPlan
from nnssl.interchange.families.primus import SIZES, is_primus, primus_architecture, primus_state
from nnssl.interchange.family import CONFIGURATION, Family, Imported, dataset_json_of, plans_of, without_prefixes
from nnssl.interchange.opening import Opened
from nnssl.networks.build import build_backbone
from nnssl.networks.pyramid import Levels

_PLAN = "nnssl_adaptation_plan"
_UNETS = ("PlainConvUNet", "ResidualEncoderUNet")
_RES_ENC_L = ("ResEncL", "NoSkipResEncL")  # the second one's decoder is another network
_HOME = "dynamic_network_architectures.architectures.unet"
_LICENCES = {"openmind": "CC BY 4.0", "nnfoundation": "CC BY-SA 4.0"}  # by the name of the pretraining's dataset
_SPACING = (1.0, 1.0, 1.0)  # where the plan names none
_KEPT = ("encoder.", "decoder.")
_SPARSE = "architecture."  # before the same names, in checkpoints of sparse masked autoencoders
_ENCODER = ("network.encoder.", "network.decoder.encoder.")  # the same module under two names
_HEADS = "decoder.seg_layers."


def _recognises(opened: Opened) -> bool:
    return _adaptation_plan(opened) is not None


def _adaptation_plan(opened: Opened) -> Mapping[str, Any] | None:
    found = opened.rest.get(_PLAN, opened.beside.get("adaptation_plan.json"))
    return found if isinstance(found, Mapping) and "architecture_plans" in found else None


def _read(opened: Opened) -> Imported:
    plan = _adaptation_plan(opened)
    assert plan is not None
    checked(plan, AdaptationPlan, f"{opened.path}: adaptation plan", "take another copy")
    name = plan["architecture_plans"]["arch_class_name"]
    dataset = " ".join((plan.get("pretrain_plan", {}).get("dataset_name") or "").split())
    short = name.rsplit(".", 1)[-1]
    if is_primus(short):
        plans = _plans(plan, primus_architecture(short, plan, opened.path), short)
        levels: Levels = "encoder"
        state, left = primus_state(opened.tensors, plan, opened.path)
    else:
        plans = _plans(plan, _architecture(plan["architecture_plans"], opened), short)
        levels, state, left = _unet_state(opened.tensors, plans)
    channels = len(plans["configurations"][CONFIGURATION]["normalization_schemes"])
    known = next((kind for kind in _LICENCES if kind in dataset.casefold()), None)
    channel = "MR" if known == "openmind" else "image"
    return Imported(
        Weights(plans, CONFIGURATION, levels, state, dataset_json_of(*[channel] * channels)),
        title=f"{name} pretrained on {dataset or 'a dataset without a name'}",
        licence=_LICENCES.get(known or ""),
        citation=_citation(opened.rest.get("citations", _hub_config(opened).get("citations"))),
        left=left,
    )


def _architecture(described: Mapping[str, Any], opened: Opened) -> dict[str, Any]:
    """The network as plans name it."""
    name = described["arch_class_name"]
    short = name.rsplit(".", 1)[-1]
    kwargs = described.get("arch_kwargs")
    if short in _RES_ENC_L and not kwargs:
        return res_enc_l()
    if (short in _UNETS or short in _RES_ENC_L) and isinstance(kwargs, Mapping):
        class_name = "ResidualEncoderUNet" if short in _RES_ENC_L else short
        imported = list(described.get("arch_kwargs_requiring_import") or ())
        given = {key: value for key, value in kwargs.items() if key != "deep_supervision"}
        return {"network_class_name": f"{_HOME}.{class_name}", "arch_kwargs": given, "_kw_requires_import": imported}
    known = ", ".join((*_RES_ENC_L, *_UNETS, *SIZES))
    raise UserError(f"{opened.path} holds the network {name}; of these, {known} can be read")


def _plans(plan: Mapping[str, Any], architecture: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Plans with the spacing, patch and normalisation of the pretraining; the first configuration counts."""
    pretrained = plan.get("pretrain_plan", {})
    first: Mapping[str, Any] = next(iter(pretrained.get("configurations", {}).values()), {})
    spacing = first.get("spacing") or [None]  # None where images keep their own
    if None in spacing:
        spacing = pretrained.get("original_median_spacing_after_transp") or _SPACING
    patch = plan.get("recommended_downstream_patchsize") or first.get("patch_size") or (160, 160, 160)
    channels = plan.get("pretrain_num_input_channels", 1)
    forward = pretrained.get("transpose_forward") or (0, 1, 2)
    plans = plans_of(f"nnsslPlans_{name}", architecture, spacing, patch, channels=channels, transpose_forward=forward)
    mine = plans["configurations"][CONFIGURATION]
    resampling, masked = first.get("resampling_fn_data"), first.get("use_mask_for_norm")
    if isinstance(resampling, str) and why_not_found(resampling, "resampling function") is None:
        mine["resampling_fn_data"] = resampling
        mine["resampling_fn_data_kwargs"] = first.get("resampling_fn_data_kwargs") or mine["resampling_fn_data_kwargs"]
    if masked is not None:  # one for each channel, or one for all
        mine["use_mask_for_norm"] = list(masked) if isinstance(masked, list | tuple) else [masked] * channels
    return plans


def _state(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by the names of our backbone, and the others."""
    stripped = without_prefixes(tensors, "module.", "_orig_mod.", "network.")
    state: dict[str, Tensor] = {}
    left: dict[str, str] = {}
    for name, tensor in sorted(stripped.items(), key=lambda item: item[0].startswith(_SPARSE)):
        short = name.removeprefix(_SPARSE)
        if not short.startswith(_KEPT) or short.startswith(_HEADS):
            left[name] = "a head of the pretraining"
        elif f"network.{short}" in state:  # the names without a prefix are those that are meant
            left[name] = f"as {short}"
        else:
            state[f"network.{short}"] = tensor
    return state, left


def _unet_state(
    tensors: Mapping[str, Tensor], plans: dict[str, Any]
) -> tuple[Levels, dict[str, Tensor], dict[str, str]]:
    """Levels, tensors by the names of our backbone, and the others."""
    state, left = _state(tensors)
    if _levels(state, plans) == "decoder":
        return "decoder", state, left
    left |= {k: "the decoder is another one, or not whole" for k in state if not k.startswith(_ENCODER)}
    return "encoder", {k: tensor for k, tensor in state.items() if k.startswith(_ENCODER)}, left


def _levels(state: Mapping[str, Tensor], plans: dict[str, Any]) -> Levels:
    """decoder where every tensor of the plans' decoder is there in its shape."""
    with torch.device("meta"):
        wanted = build_backbone(plans, CONFIGURATION, "decoder").used_tensors()
    decoder = {k: tensor for k, tensor in wanted.items() if not k.startswith(_ENCODER)}
    whole = all(name in state and state[name].shape == tensor.shape for name, tensor in decoder.items())
    return "decoder" if whole else "encoder"


def _hub_config(opened: Opened) -> Mapping[str, Any]:
    found = opened.beside.get("config.json")
    return found if isinstance(found, Mapping) else {}


def _citation(listed: Any) -> str:
    """All papers in one line."""
    papers: list[Any] = []
    for entry in listed if isinstance(listed, list) else []:
        if isinstance(entry, Mapping):
            found = entry.get("apa_citations") or entry.get("bibtex_citations") or entry.get("name", "")
            papers += found if isinstance(found, list) else [found]
    return "; ".join(" ".join(str(paper).split()) for paper in papers if paper)


FAMILY = Family(
    "exchange", "checkpoints with an adaptation plan: ResEncL, NoSkipResEncL, ResidualEncoderUNet, PlainConvUNet, "
    "PrimusS, B, M, L (OpenMind, nnFoundation)", "CC BY 4.0; CC BY-SA 4.0", _recognises, _read,
)  # fmt: skip
