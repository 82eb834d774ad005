"""Which parameters of a network are its encoder, its decoder, the first stages of its encoder, or all but its head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from nnssl.core.errors import UserError
from nnssl.finetuning.segmentation import PyramidSegmentation
from nnssl.networks.build import backbone_of, name_in_network, pretrained_part
from nnssl.networks.unet import UNetPyramid

ENCODER: Literal["encoder"] = "encoder"
DECODER: Literal["decoder"] = "decoder"
BODY: Literal["body"] = "body"
_SEGMENTATION = "seg_layers"  # how nnU-Net, and every network here, names what maps to classes


def parameters_of(part: str, module: nn.Module, configuration: Mapping[str, Any]) -> list[nn.Parameter]:
    """Parameters of a part of a network.

    Args:
        part: `encoder`, `decoder`, `stages:N` for the first N stages of the encoder with what comes before them, or
            `body` for all but the segmentation layers. A network with a head of this package has its whole backbone as
            encoder and as body, and the head as decoder.
        module: A network of the trainers, or nnU-Net's own.
        configuration: Resolved 3D configuration of the plans.

    Raises:
        UserError: The encoder has fewer stages, or the network is of another kind.
    """
    if part == BODY:
        return _body(module)
    if part not in (ENCODER, DECODER):
        return _stages(module, configuration, int(part.rpartition(":")[2]))
    encoder = _encoder(module, configuration)
    if part == ENCODER:
        return encoder
    known = {id(p) for p in encoder}
    return [p for p in module.parameters() if id(p) not in known]


def part_in_words(part: str, module: nn.Module) -> str:
    """A part's name for the log: of a network with a head of this package, whose encoder is its whole backbone."""
    if isinstance(module, PyramidSegmentation):
        return {ENCODER: "backbone", BODY: "backbone", DECODER: "head"}.get(part, part)
    return part


def _body(module: nn.Module) -> list[nn.Parameter]:
    if isinstance(module, PyramidSegmentation):
        return list(module.backbone.parameters())
    body = [p for name, p in module.named_parameters() if _SEGMENTATION not in name.split(".")]
    if len(body) == len(list(module.parameters())):
        raise UserError(f"the segmentation layers of {type(_whole(module)).__name__} cannot be told apart, as none is "
                        f"named {_SEGMENTATION}; freeze its encoder with export nnssl_freeze=encoder")  # fmt: skip
    return body


def _whole(module: nn.Module) -> Any:
    """The plans' network, with or without the bridge of intensities around it."""
    return getattr(module, "network", module)


def _encoder(module: nn.Module, configuration: Mapping[str, Any]) -> list[nn.Parameter]:
    if isinstance(module, PyramidSegmentation):
        return list(module.backbone.parameters())
    network = _whole(module)
    if hasattr(network, "encoder"):
        return list(network.encoder.parameters())
    part = pretrained_part(network, dict(configuration), ENCODER)
    return [tensor for tensor in part.values() if isinstance(tensor, nn.Parameter)]


def _stages(module: nn.Module, configuration: Mapping[str, Any], number: int) -> list[nn.Parameter]:
    if isinstance(module, PyramidSegmentation):
        network: Any = module.backbone.network if isinstance(module.backbone, UNetPyramid) else None
    else:
        network = _whole(module)
    if hasattr(network, "encoder"):
        stages = list(network.encoder.stages)
        _refuse_more(number, len(stages))
        stem = getattr(network.encoder, "stem", None)
        parts = [*([] if stem is None else [stem]), *stages[:number]]
        return [p for stage in parts for p in stage.parameters()]
    if network is None:
        raise UserError(f"the first stages of {type(module).__name__}'s backbone cannot be told apart; freeze the "
                        f"whole of it with export nnssl_freeze=encoder")  # fmt: skip
    names = {name_in_network(name) for name in _names_of_stages(dict(configuration), number)}
    return [p for name, p in network.named_parameters() if name in names]


def _names_of_stages(configuration: dict[str, Any], number: int) -> list[str]:
    """Names, in the pyramid, of the parameters that the map of a stage depends on; nothing is computed for that."""
    with torch.device("meta"):
        pyramid = backbone_of(configuration, ENCODER)
        image = torch.zeros(1, pyramid.input_channels, *configuration["patch_size"])
    _refuse_more(number, len(pyramid.channels))
    trained = {name: p for name, p in pyramid.named_parameters() if p.requires_grad}
    total = pyramid(image)[number - 1].sum()
    gradients = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
    return [name for name, gradient in zip(trained, gradients, strict=True) if gradient is not None]


def _refuse_more(number: int, there: int) -> None:
    if number > there:
        raise UserError(f"nnssl_freeze=stages:{number} asks for more stages than the {there} of the encoder; type: "
                        f"export nnssl_freeze=encoder")  # fmt: skip
