"""A network that nnU-Net has trained, as a pretraining: supervised pretraining is the baseline of every comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nnssl.checkpoints.imported import Weights, imported_content
from nnssl.checkpoints.origin import ORIGIN
from nnssl.core.errors import UserError
from nnssl.core.files import checked
from nnssl.core.plans_schema import PlansFile
from nnssl.core.schemas import ImagesFile, Origin
from nnssl.data.planning import BLOCK
from nnssl.data.trusted import read_nnunet_checkpoint
from nnssl.networks.build import resolve_configuration

_WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
_RES_ENC_L = "ResEncL"
_FIX = "give the checkpoint_final.pth of a 3D nnU-Net training, unchanged"


def nnunet_content(path: Path) -> dict[str, Any] | None:
    """A checkpoint of nnU-Net's trainers as one of `nnssl_pretrain`; None if the file is no such checkpoint.

    Raises:
        UserError: its configuration is 2D or the second stage of a cascade, or its network is not that of its plans.
    """
    try:
        content = read_nnunet_checkpoint(path)
    except UserError:
        return None
    if not is_nnunet(content):
        return None
    weights = nnunet_weights(content, path)
    about = {"title": f"a model of nnU-Net, trained on {weights.plans['dataset_name']}", "source": {"file": path.name}}
    return imported_content(weights, path, {**about, **origin_of_training(content, path)}).content


def origin_of_training(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Licence, citation and title of the weights of somebody else that a training of this package started from.

    Args:
        content: of the checkpoint, see `is_nnunet`.
        path: of the file, for messages.

    Raises:
        UserError: the entry is damaged.
    """
    block = content["init_args"]["plans"].get(BLOCK)
    found = block.get(ORIGIN) if isinstance(block, Mapping) else None
    return {} if found is None else dict(checked(found, Origin, f"{path}: plans.{BLOCK}.{ORIGIN}", _FIX))


def is_nnunet(content: Mapping[str, Any]) -> bool:
    """Whether a file's content is that of a checkpoint of nnU-Net's trainers."""
    about, weights = content.get("init_args"), content.get("network_weights")
    if not isinstance(about, Mapping) or not isinstance(weights, Mapping):
        return False
    return isinstance(about.get("plans"), Mapping) and "configuration" in about


def nnunet_weights(content: Mapping[str, Any], path: Path) -> Weights:
    """The network of a checkpoint of nnU-Net's trainers with its plans; all but its segmentation layers is pretrained.

    Fine-tunings of nnU-Net's development version, which stock prediction refuses, are read too.

    Args:
        content: of the checkpoint, see `is_nnunet`.
        path: of the file, for messages.

    Raises:
        UserError: as `nnunet_content`.
    """
    about = content["init_args"]
    configuration, dataset_json = str(about["configuration"]), _plain(about.get("dataset_json"))
    plans, state = _plain(about["plans"]), _state(content["network_weights"], about["plans"], path)
    _complete(plans, configuration)
    checked(plans, PlansFile, f"{path}: plans", _FIX)
    checked(dataset_json, ImagesFile, f"{path}: dataset_json", _FIX)
    try:
        resolved = resolve_configuration(plans, configuration)
    except UserError as error:
        raise UserError(f"{path}: {error}; {_FIX}") from error
    if resolved.get("previous_stage"):
        raise UserError(f"{path} is of {configuration}, the second stage of a cascade, whose network reads the first "
                        f"one's segmentation; give the checkpoint of another configuration")  # fmt: skip
    ours = str(resolved.get("architecture", {}).get("network_class_name", "")).startswith("nnssl.")
    named = {name.removeprefix("backbone.") if ours else f"network.{name}": tensor for name, tensor in state.items()}
    return Weights(plans, configuration, "decoder", named, dataset_json)


def _state(state: Mapping[str, Tensor], plans: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Tensors by the names of the plans' network, without what wraps it."""
    named = {}
    for name, tensor in ((name, value) for name, value in state.items() if isinstance(value, Tensor)):
        while start := next((w for w in _WRAPPERS if name.startswith(w)), ""):
            name = name[len(start) :]
        named[name] = tensor
    network = plans.get(BLOCK, {}).get("network")  # of this package's own trainers
    if network is None:
        return named
    if network.get("head") != "unet" or network.get("intensity") is not None:
        raise UserError(f"{path} is a training of this package whose network is not that of its plans alone; give the "
                        f"pretraining that it started from, or a training by nnU-Net's own trainer")  # fmt: skip
    return {name.removeprefix("network."): tensor for name, tensor in named.items()}


def _complete(plans: dict[str, Any], configuration: str) -> None:
    """Give plans what nnU-Net's development version leaves out for networks that it has a name for."""
    plans.pop(BLOCK, None)
    plans["plans_name"] = _one_name(plans.get("plans_name"))
    configurations = plans.get("configurations")
    for name, entries in configurations.items() if isinstance(configurations, dict) else ():
        if not isinstance(entries, dict):
            continue
        if entries.get("data_identifier"):
            entries["data_identifier"] = _one_name(entries["data_identifier"])
        architecture = entries.get("architecture")
        if architecture and architecture.get("network_class_name") == _RES_ENC_L:
            entries["architecture"] = res_enc_l()
        if name == configuration and None in (entries.get("spacing") or ()):  # not resampled: the commonest voxels
            entries["spacing"] = plans.get("original_median_spacing_after_transp")


def _one_name(name: Any) -> str:
    """A name in which nnU-Net finds no parts."""
    return "_".join(part.strip("_") for part in str(name).split("__") if part.strip("_"))


def res_enc_l() -> dict[str, Any]:
    """The architecture that is called ResEncL in exchange checkpoints."""
    stages = 6
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": [32, 64, 128, 256, 320, 320],
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [[3, 3, 3]] * stages,
            "strides": [[1, 1, 1]] + [[2, 2, 2]] * (stages - 1),
            "n_blocks_per_stage": [1, 3, 4, 6, 6, 6],
            "n_conv_per_stage_decoder": [1] * (stages - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _plain(value: Any) -> Any:
    """JSON types only: tuples become lists, numbers of numpy those of Python."""
    return json.loads(json.dumps(value, default=lambda v: v.item() if hasattr(v, "item") else str(v)))
