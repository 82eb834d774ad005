"""A finished pretraining: what is read and transferred of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from nnssl.errors import UserError
from nnssl.methods.registry import get_method
from nnssl.pretraining.checkpoint import FINAL, load_checkpoint

RANDOM = "random"  # in place of a checkpoint: the papers' baseline, a frozen random backbone
VARIABLE = "nnssl_checkpoint"
_BACKBONE = "backbone."


@dataclass(frozen=True)
class Pretrained:
    """The part of a finished pretraining that is transferred, and what it was made with.

    Args:
        path: the checkpoint.
        method: its name.
        levels: which maps of the network the method used, see `nnssl.networks.build.build_backbone`.
        plans, configuration, dataset_json: of the pretraining.
        backbone: state of the `FeaturePyramid`.
        others: number of values by name of what is not transferred, such as the pretraining's own heads.
        orientation: the volumes' commonest one, such as LPS; None where it is unknown.
        config: its hyper-parameters as JSON types, see `nnssl.methods.options.from_plain`.
    """

    path: Path
    method: str
    levels: Literal["encoder", "decoder"]
    plans: dict[str, Any]
    configuration: str
    dataset_json: dict[str, Any]
    backbone: dict[str, Tensor]
    others: dict[str, int]
    orientation: str | None
    config: dict[str, Any]


def read_pretrained(path: Path, mapped: bool = False) -> Pretrained:
    """Read a checkpoint of `nnssl_pretrain`; `mapped` as of `load_checkpoint`.

    Raises:
        UserError: the file is not one.
    """
    content = load_checkpoint(path, mapped=mapped)
    state: dict[str, Tensor] = content["method_state"]
    return Pretrained(
        path,
        content["method"],
        get_method(content["method"]).levels,
        content["plans"],
        content["configuration"],
        content["dataset_json"],
        {name[len(_BACKBONE) :]: tensor for name, tensor in state.items() if name.startswith(_BACKBONE)},
        {name: tensor.numel() for name, tensor in state.items() if not name.startswith(_BACKBONE)},
        content.get("orientation"),
        content["config"],
    )


def load_whole(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Fill a network that was built from a checkpoint's own plans.

    Args:
        network: what is filled.
        state: of all of it, from the checkpoint.
        path: of the checkpoint, for the message.

    Raises:
        UserError: names or shapes differ.
    """
    own = network.state_dict()
    wrong = [name for name in own.keys() | state.keys()
             if name not in own or name not in state or own[name].shape != state[name].shape]  # fmt: skip
    if wrong:
        raise UserError(f"{path} does not hold the network of its own plans ({', '.join(sorted(wrong)[:3])}); take a "
                        f"checkpoint that nnssl_pretrain wrote and left unchanged")  # fmt: skip
    network.load_state_dict(state)


def finished_pretrainings(results: Path, method: str | None = None, dataset: str | None = None) -> list[Path]:
    """Checkpoints of the finished runs below nnUNet_results, sorted; of one method, or of one dataset by its name."""
    return sorted(results.glob(f"{escape(dataset) if dataset else 'Dataset*'}/nnssl_{method or '*'}__*/fold_*/{FINAL}"))


def name_of(path: Path | None, results: Path) -> str:
    """How plans name a checkpoint: below nnUNet_results where it lies there, so that the folder can be moved."""
    if path is None:
        return RANDOM
    resolved = path.resolve()
    inside = resolved.is_relative_to(results.resolve())
    return (resolved.relative_to(results.resolve()) if inside else resolved).as_posix()
