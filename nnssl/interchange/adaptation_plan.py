"""The checkpoint that nnU-Net's fine-tuning from pretrained weights reads, with its adaptation plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from nnssl.checkpoints.exported import ADAPTATION_PLAN, HEADS, NETWORK
from nnssl.core.errors import UserError
from nnssl.interchange.families.primus import SIZES
from nnssl.networks.build import resolve_configuration, segmentation_of
from nnssl.networks.trusted import trusted_network

_DYNAMIC = ("PlainConvUNet", "ResidualEncoderUNet")  # that nnU-Net builds from arch_kwargs
_PRIMUS = "nnssl.networks.primus.Primus"
_PRIMUS_TOKEN = [8, 8, 8]  # voxels, of the sizes with names
_PRIMUS_KEYS = {"key_to_encoder": "eva", "key_to_stem": "down_projection", "keys_to_in_proj": ["down_projection.proj"],
                "key_to_lpe": "eva.pos_embed"}  # fmt: skip
_Z_SCORE = "ZScoreNormalization"
_STAGES = 6
# The network that is exchanged under a name of its own.
_RES_ENC_L: dict[str, Any] = {
    "n_stages": _STAGES,
    "features_per_stage": [32, 64, 128, 256, 320, 320],
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[3, 3, 3]] * _STAGES,
    "strides": [[1, 1, 1], *[[2, 2, 2]] * (_STAGES - 1)],
    "n_blocks_per_stage": [1, 3, 4, 6, 6, 6],
    "n_conv_per_stage_decoder": [1] * (_STAGES - 1),
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.modules.activation.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}


def exchanged(run: Mapping[str, Any], state: Mapping[str, Tensor], citations: list[dict[str, Any]]) -> dict[str, Any]:
    """Content of a checkpoint of the exchange format.

    Args:
        run: entries of the run's checkpoint but its tensors; they become `init_args`, from which this package makes
            the checkpoint again.
        state: the transferred part of `method_state`; a tensor with several names is shared.
        citations: of method and software.

    Raises:
        UserError: nnU-Net cannot build this network from such a file.
    """
    plan = adaptation_plan(run)
    content = {
        "network_weights": {k[len(NETWORK) :]: v for k, v in state.items() if k.startswith(NETWORK)},
        ADAPTATION_PLAN: plan,
        "trainer_name": f"nnssl_{run['method']}",
        "init_args": dict(run),
        "citations": citations,
    }
    heads = {name: tensor for name, tensor in state.items() if name.startswith(HEADS)}
    return content | ({"heads": heads} if heads else {})


def adaptation_plan(run: Mapping[str, Any]) -> dict[str, Any]:
    """What nnU-Net needs to know of the network and of the preprocessing, in plain types.

    Raises:
        UserError: as of `exchanged`.
    """
    plans, resolved = run["plans"], resolve_configuration(run["plans"], run["configuration"])
    architecture = architecture_of(resolved)
    style = "onemmiso" if list(resolved["spacing"]) == [1, 1, 1] else "median"
    known = ("dataset_name", "plans_name", "original_median_spacing_after_transp", "image_reader_writer",
             "transpose_forward", "transpose_backward", "experiment_planner_used")  # fmt: skip
    return {
        "architecture_plans": _architecture_plans(architecture),
        "pretrain_plan": {**{key: plans.get(key) for key in known},
                          "configurations": {style: _configuration(resolved, style)}},
        "pretrain_num_input_channels": len(resolved["normalization_schemes"]),
        "recommended_downstream_patchsize": [int(n) for n in resolved["patch_size"]],
        **_keys(resolved, architecture),
    }  # fmt: skip


def architecture_of(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """`network_class_name`, `arch_kwargs` and `_kw_requires_import` of any plans, with full names of all classes."""
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

    trusted = trusted_network(resolved)
    if "architecture" not in trusted:  # nnU-Net turns plans of its older versions into those of today
        trusted = trusted_network(ConfigurationManager(trusted).configuration)
    architecture: dict[str, Any] = trusted["architecture"]
    return architecture


def warnings_of(plan: Mapping[str, Any]) -> list[str]:
    """What fine-tuning by nnU-Net does otherwise than this pretraining, in sentences.

    Args:
        plan: from `adaptation_plan`.
    """
    (configuration,) = plan["pretrain_plan"]["configurations"].values()
    schemes, warnings = configuration["normalization_schemes"], []
    if others := sorted({scheme for scheme in schemes if scheme != _Z_SCORE}):
        warnings.append(f"pretraining saw intensities of {', '.join(others)}, and nnU-Net's fine-tuning from this file "
                        f"gives every image its own z-score, which these weights have not seen; nnssl_transfer keeps "
                        f"the intensities")  # fmt: skip
    if plan["architecture_plans"]["arch_class_name"] == "PlainConvUNet":
        warnings.append(f"fine-tuning by nnU-Net from this file fails on images with more than {len(schemes)} "
                        f"channel{'s' if len(schemes) > 1 else ''}, as its loader does not widen a PlainConvUNet; "
                        f"nnssl_transfer does")  # fmt: skip
    return warnings


def shared_once(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Contiguous tensors, each under its first name, and the further names of each (alias to first name).

    Args:
        state: of a checkpoint, where tensors with several names share their memory.
    """
    first: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in state.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else (name,)
        if (known := first.setdefault(place, name)) != name:
            aliases[name] = known
    return {name: state[name].contiguous() for name in first.values()}, aliases


def _configuration(resolved: Mapping[str, Any], style: str) -> dict[str, Any]:
    same = ("data_identifier", "preprocessor_name", "normalization_schemes", "use_mask_for_norm", "resampling_fn_data",
            "resampling_fn_data_kwargs")  # fmt: skip
    return {
        **{key: resolved.get(key) for key in same},
        "spacing_style": style,
        "resampling_fn_mask": resolved.get("resampling_fn_seg"),
        "resampling_fn_mask_kwargs": resolved.get("resampling_fn_seg_kwargs"),
        "spacing": [float(mm) for mm in resolved["spacing"]],
        "patch_size": [int(n) for n in resolved["patch_size"]],
    }


def _keys(resolved: dict[str, Any], architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Where nnU-Net finds the parts of the network in the state dict."""
    if _is_primus(architecture):
        return {**_PRIMUS_KEYS, "pretrain_patch_size": list(architecture["arch_kwargs"]["input_shape"])}
    with torch.device("meta"):  # for the names only
        network: Any = segmentation_of(resolved, 2)
    return {"key_to_encoder": network.key_to_encoder, "key_to_stem": network.key_to_stem,
            "keys_to_in_proj": list(network.keys_to_in_proj), "key_to_lpe": None}  # fmt: skip


def _is_primus(architecture: Mapping[str, Any]) -> bool:
    return bool(architecture["network_class_name"] == _PRIMUS)


def _architecture_plans(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Raises UserError for networks that the format has no name for."""
    kwargs, name = architecture["arch_kwargs"], architecture["network_class_name"].rpartition(".")[2]
    if _is_primus(architecture):
        size = tuple(kwargs[key] for key in ("embed_dim", "eva_depth", "eva_numheads"))
        named = [named for named, known in SIZES.items() if known == size]
        if named and list(kwargs.get("patch_embed_size", _PRIMUS_TOKEN)) == _PRIMUS_TOKEN:
            return {"arch_class_name": named[0], "arch_kwargs": None, "arch_kwargs_requiring_import": None}
        name = f"a Primus of a size of its own ({', '.join(SIZES)} have names)"
    elif name not in _DYNAMIC:
        name = f"{name}, none of {', '.join((*_DYNAMIC, *SIZES))}"
    if name not in _DYNAMIC:
        raise UserError(f"nnU-Net's exchange format cannot describe this run's network, {name}; export it with -format "
                        f"safetensors")  # fmt: skip
    if name == "ResidualEncoderUNet" and _comparable(kwargs) == _comparable(_RES_ENC_L):
        return {"arch_class_name": "ResEncL", "arch_kwargs": None, "arch_kwargs_requiring_import": None}
    return {
        "arch_class_name": name,
        "arch_kwargs": dict(kwargs),
        "arch_kwargs_requiring_import": list(architecture["_kw_requires_import"]),
    }


def _comparable(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments without those that are left at None, one number for all stages written out."""
    given = {key: value for key, value in kwargs.items() if value is not None}
    for key in ("n_blocks_per_stage", "n_conv_per_stage_decoder", "kernel_sizes"):
        if isinstance(given.get(key), int):
            count = given["n_stages"] - (key == "n_conv_per_stage_decoder")
            given[key] = [[given[key]] * 3 if key == "kernel_sizes" else given[key]] * count
    return {key: [list(v) if isinstance(v, tuple) else v for v in value] if isinstance(value, list | tuple) else value
            for key, value in given.items()}  # fmt: skip
