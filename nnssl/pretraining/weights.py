"""Weights in and out: those of another run that a run starts from, and `nnunet_weights.pth` for stock trainers."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nnssl.checkpoints.files import FINAL, NNUNET_WEIGHTS, levels_of, load_checkpoint, save_checkpoint
from nnssl.checkpoints.loading import fill, first_of, fitting
from nnssl.core.errors import UserError
from nnssl.data.guard import Images, warn_of_images
from nnssl.methods.base import Method
from nnssl.networks.build import name_in_network, pretrained_part, resolve_configuration, segmentation_of
from nnssl.pretraining.folder import Stored
from nnssl.pretraining.setup import Setup

log = logging.getLogger("nnssl")


def load_weights(method: Method, source: Stored) -> None:
    """Start from another run's weights: the backbone must fit entirely, the rest only where it does.

    A method that uses the decoder is warned of a decoder that nobody has trained.

    Raises:
        UserError: a tensor of the backbone is missing or has another shape; the first ones are named.
    """
    own, values = method.state_dict(), _fitting(method, source)
    method.load_state_dict(values, strict=False)
    fresh = [k for k in own if k not in values]
    log.info(f"{source.path}: {len(values)} of {len(own)} tensors loaded, {len(fresh)} fresh"
             + (f" ({first_of(fresh)})" if fresh else ""))  # fmt: skip
    if (type(method).levels, levels_of(source.content)) == ("decoder", "encoder"):
        log.warning(f"{source.path} holds a pretrained encoder only: the decoder starts from random weights")


def check_weights(method: Method, setup: Setup, allow: bool) -> None:
    """Make sure that a run can start from the weights that its request names.

    Args:
        method: of the run; it may be without memory.
        setup: of the run, with `pretrained`.
        allow: whether the weights may be of another modality.

    Raises:
        UserError: as of `load_weights`; or they are of another modality (`nnssl.data.guard`).
    """
    assert setup.pretrained is not None
    content = setup.pretrained.content
    _fitting(method, setup.pretrained)
    given = Images.of_pretraining(
        content["plans"], content["configuration"], content["dataset_json"], content.get("orientation")
    )
    own = replace(setup.images, spacing=setup.resolved["spacing"], axes=setup.plans.get("transpose_forward", [0, 1, 2]))
    warn_of_images(given, own, allow)


def check_state(method: Method, state: Mapping[str, Tensor], path: Path) -> None:
    """Make sure that a method can take all of a checkpoint's state.

    Args:
        method: of the run's options; it may be without memory.
        state: of a method with the same options.
        path: of the checkpoint, for the message.

    Raises:
        UserError: an earlier version's method had other networks with these options; the first tensors are named.
    """
    own = method.state_dict()
    if wrong := sorted({*fitting(own, state)[1], *(state.keys() - own.keys())}):
        raise UserError(f"{path} is of a version whose networks were others with these options ({first_of(wrong)}); go "
                        f"on with the version that config.json names, or start a new run, from these weights with "
                        f"-pretrained if you like")  # fmt: skip


def _fitting(method: Method, source: Stored) -> dict[str, Tensor]:
    """Tensors of a checkpoint that the method has a place for; raises as `load_weights` does."""
    values, different = fitting(method.state_dict(), source.content["method_state"])
    wrong = [f"{name}: {what}" for name, what in different.items() if name.startswith("backbone.")]
    if wrong:
        raise UserError(f"{source.path} holds another network than these plans ({first_of(wrong, '; ')}); give a "
                        f"checkpoint of the same architecture, or the plans that it was made with (-p)")  # fmt: skip
    return {name: value for name, value in values.items() if not name.startswith(type(method).of_the_run)}


_BACKBONE = "backbone."
_CLASSES = 2  # any number: nnU-Net takes everything but the segmentation layers


def write_nnunet_weights(folder: Path) -> Path | None:
    """Write `nnunet_weights.pth` beside the final checkpoint of a run, in one piece.

    nnU-Net takes everything but the segmentation layers. Where more depends on the number of classes, as in Primus,
    nothing is written and None returned.

    Raises:
        UserError: the checkpoint does not fit the network of its own plans, or no space is left.
    """
    file = folder / NNUNET_WEIGHTS
    checkpoint = load_checkpoint(folder / FINAL)
    network, pretrained = pretrained_network(checkpoint, folder / FINAL)
    if depending := depending_on_classes(resolve_configuration(checkpoint["plans"], checkpoint["configuration"])):
        log.info(f"there is no {file.name}, for nnUNetv2_train -pretrained_weights: tensors of the network depend on "
                 f"the number of classes ({first_of(depending)}); the trainers of this package load the rest"
                 )  # fmt: skip
        return None
    save_checkpoint({"network_weights": dict(network.state_dict())}, file)
    fresh = {name: tensor for name, tensor in _tensors(network).items() if name not in pretrained}
    log.info(f"{file.name}, for nnUNetv2_train -pretrained_weights: {_count(pretrained.values())} pretrained, "
             f"{_count(fresh.values())} fresh")  # fmt: skip
    return file


def pretrained_network(checkpoint: dict[str, Any], path: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """The segmentation network of a checkpoint's plans, on the CPU, with the pretrained part loaded.

    Pretrained is what the method's feature maps depend on: the encoder, or encoder and decoder without segmentation
    layers. The rest is initialised anew, from the run's seed.

    Args:
        checkpoint: content of a checkpoint of `nnssl_pretrain`.
        path: of the checkpoint, for messages.

    Returns:
        The network, and its pretrained parameters and buffers by name; one with several names comes once.

    Raises:
        UserError: a tensor of the pretrained part is missing, has another shape, or differs under its other names.
    """
    plans, configuration = checkpoint["plans"], checkpoint["configuration"]
    resolved = resolve_configuration(plans, configuration)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(checkpoint["config"]["seed"])
        network = segmentation_of(resolved, _CLASSES)
    state: dict[str, Tensor] = checkpoint["method_state"]
    given = {name_in_network(k[len(_BACKBONE) :]): v for k, v in state.items() if k.startswith(_BACKBONE)}
    part = pretrained_part(network, resolved, levels_of(checkpoint))
    pretrained = {name_in_network(name): tensor for name, tensor in part.items()}
    values, wrong = fitting(pretrained, given)
    if wrong or not pretrained:
        raise UserError(f"{NNUNET_WEIGHTS} cannot be made: {path} does not hold the network of its own plans "
                        f"({first_of(wrong) or 'no tensor'}); it is whole otherwise")  # fmt: skip
    fill(pretrained, values)
    _check_copies(network, given, pretrained, path)
    return network, pretrained


def depending_on_classes(resolved: dict[str, Any]) -> list[str]:
    """Names of the tensors that nnU-Net would load and that have another shape for another number of classes."""
    with torch.device("meta"):
        one, other = (segmentation_of(resolved, classes).state_dict() for classes in (_CLASSES, _CLASSES + 1))
    return [name for name in one if ".seg_layers." not in name and one[name].shape != other[name].shape]


def _check_copies(network: nn.Module, given: dict[str, Tensor], pretrained: dict[str, Tensor], path: Path) -> None:
    """nnU-Net loads a tensor once for each of its names, so that the last name would win silently."""
    loaded = {id(tensor) for tensor in pretrained.values()}
    for name, tensor in network.state_dict(keep_vars=True).items():
        if id(tensor) in loaded and name in given and not torch.equal(tensor, given[name]):
            raise UserError(f"{NNUNET_WEIGHTS} cannot be made: {path} holds two different values for {name}")


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _count(tensors: Collection[Tensor]) -> str:
    return f"{len(tensors)} tensors ({sum(t.numel() for t in tensors):,} values)"
