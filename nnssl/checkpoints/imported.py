"""Weights of other programs as the content of a checkpoint: every tensor of the backbone is given, or it is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnssl.checkpoints.loading import fill, first_of
from nnssl.core.errors import UserError
from nnssl.methods.base import MethodConfig
from nnssl.methods.options import to_plain
from nnssl.methods.registry import IMPORTED
from nnssl.networks.build import build_backbone, resolve_configuration
from nnssl.networks.pyramid import FeaturePyramid, Levels

_BACKBONE = "backbone."
_COUNTED = "num_batches_tracked"  # of batch normalisation: old files lack it, and nothing depends on it


@dataclass(frozen=True)
class Weights:
    """A network of another program, as one of ours.

    Args:
        plans: nnU-Net's; `configuration` is one of theirs, and its network is that of the weights.
        configuration: its name.
        levels: which of the network's maps the weights are pretrained for.
        state: tensors by their names in `nnssl.networks.build.build_backbone`; one that has several names there may be
            given under any of them. Further tensors are left out.
        dataset_json: nnU-Net's, with the channels.
        orientation: that the images were turned to, such as RAS; None where unknown.
        fresh: beginnings of names that `state` lacks because nobody trained them: they keep random initial values.
        made_by: method of this package that its authors made the weights with; its trainers take them.
    """

    plans: dict[str, Any]
    configuration: str
    levels: Levels
    state: Mapping[str, Tensor]
    dataset_json: dict[str, Any]
    orientation: str | None = None
    fresh: tuple[str, ...] = ()
    made_by: str | None = None


@dataclass(frozen=True)
class Taken:
    """What became of the tensors of `Weights.state`, and which ones of the network they were.

    Args:
        content: of a checkpoint, as `nnssl.checkpoints.files.load_checkpoint` returns it.
        mapped: names of the given tensors that are in the backbone.
        left: names of those that are not.
    """

    content: dict[str, Any]
    mapped: list[str]
    left: list[str]


def imported_content(weights: Weights, origin: object, about: Mapping[str, Any] | None = None) -> Taken:
    """Make the content of a checkpoint from the weights of another program.

    Args:
        weights: of the network.
        origin: the file, for messages.
        about: where they come from, in JSON types, kept as `imported`.

    Raises:
        UserError: a tensor that the levels depend on is missing, has another shape or type, or is not finite; or two
            names of one tensor hold different values.
    """
    with torch.random.fork_rng(devices=[]):  # what is not given, such as segmentation layers, is the same each time
        torch.manual_seed(0)
        backbone = build_backbone(weights.plans, weights.configuration, weights.levels)
    mapped = _fill(backbone, weights, origin)
    z, y, x = (int(n) for n in resolve_configuration(weights.plans, weights.configuration)["patch_size"])
    content = {
        "method": IMPORTED,
        "levels": weights.levels,
        "method_state": {f"{_BACKBONE}{name}": tensor for name, tensor in backbone.state_dict().items()},
        "config": to_plain(MethodConfig(patch_size=(z, y, x))),
        "plans": weights.plans,
        "configuration": weights.configuration,
        "dataset_json": weights.dataset_json,
        "orientation": weights.orientation,
        IMPORTED: dict(about or {}),
    }
    return Taken(content, mapped, [name for name in weights.state if name not in set(mapped)])


def _fill(backbone: FeaturePyramid, weights: Weights, origin: object) -> list[str]:
    """Give the backbone its weights; returns the names of the given tensors that it took."""
    wanted = {id(tensor): name for name, tensor in backbone.used_tensors().items()}
    saved = {name: tensor for name, tensor in backbone.state_dict(keep_vars=True).items() if id(tensor) in wanted}
    names: dict[int, list[str]] = {}
    for name, tensor in saved.items():
        names.setdefault(id(tensor), []).append(name)
    values: dict[str, Tensor] = {}
    missing: list[str] = []
    for key, aliases in names.items():
        given = [name for name in aliases if name in weights.state]
        if given:
            values[aliases[0]] = _the_one_value(given, weights.state, saved[aliases[0]], origin)
        elif not wanted[key].endswith(_COUNTED) and not wanted[key].startswith(weights.fresh):
            missing.append(aliases[0])
    if missing:
        raise UserError(f"{origin} lacks {len(missing)} of {len(names)} tensors of its network "
                        f"({first_of(missing)}); it is not whole, take another copy")  # fmt: skip
    fill(saved, values)
    return [name for name in weights.state if name in saved]


def _the_one_value(given: Sequence[str], state: Mapping[str, Tensor], own: Tensor, origin: object) -> Tensor:
    first = state[given[0]]
    if first.shape != own.shape:
        raise UserError(f"{origin}: {given[0]} is {tuple(first.shape)}, and its network has {tuple(own.shape)} there; "
                        f"it is not the network that it seems to be")  # fmt: skip
    if first.is_floating_point() != own.is_floating_point():
        raise UserError(f"{origin}: {given[0]} is of {first.dtype}, and its network has {own.dtype} there; take a copy "
                        f"that is not quantised")  # fmt: skip
    if not bool(first.isfinite().all()):
        raise UserError(f"{origin}: {given[0]} holds values that are no finite numbers; take another copy")
    for other in given[1:]:
        if not torch.equal(state[other], first):
            raise UserError(f"{origin} holds two different values for one tensor, as {given[0]} and as {other}; take "
                            f"another copy")  # fmt: skip
    return first
