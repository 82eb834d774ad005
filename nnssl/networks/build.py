"""Networks from nnU-Net plans."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from nnssl.core.errors import UserError
from nnssl.networks.fpn_unet import FPN3d, FPN3dUNet, check_strides
from nnssl.networks.lapn_unet import LapnUNet, lapn_pyramid
from nnssl.networks.pimpic_unet import PimpicUNet, pimpic_pyramid
from nnssl.networks.pyramid import FeaturePyramid
from nnssl.networks.swin import SwinPyramid, SwinUNETR, check_swin_strides
from nnssl.networks.trusted import trusted_network
from nnssl.networks.unet import UNetPyramid
from nnssl.networks.vit import UNETR, vit_pyramid

Levels = Literal["encoder", "decoder"]

_UNET_CLASSES = ("PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet")
# The segmentation layers are no part of a backbone, whatever their number of classes.
_ANY_NUMBER_OF_CLASSES = 2


class _OwnNetwork(NamedTuple):
    """A network of this package: what plans name, and the same as a pyramid."""

    segmentation: type[nn.Module]  # (input_channels, num_classes, **arch_kwargs)
    pyramid: Callable[..., FeaturePyramid]  # (input_channels, levels, **arch_kwargs)


def _fpn(input_channels: int, levels: Levels, strides: Any, num_scales: int, **arguments: Any) -> FeaturePyramid:
    check_strides(strides, num_scales)
    return FPN3d(input_channels, num_scales=num_scales, levels=levels, **arguments)


def _swin(input_channels: int, levels: Levels, strides: Any, **arguments: Any) -> FeaturePyramid:
    check_swin_strides(strides)
    return SwinPyramid(input_channels, levels=levels, **arguments)


_OWN = {
    f"{own.segmentation.__module__}.{own.segmentation.__qualname__}": own
    for own in (
        _OwnNetwork(FPN3dUNet, _fpn),
        _OwnNetwork(SwinUNETR, _swin),
        _OwnNetwork(PimpicUNet, pimpic_pyramid),
        _OwnNetwork(LapnUNet, lapn_pyramid),
        _OwnNetwork(UNETR, vit_pyramid),
    )
}


def build_network(plans: dict[str, Any], configuration: str, num_classes: int) -> nn.Module:
    """Build the segmentation network that the plans name, freshly initialised as nnU-Net does it.

    Args:
        plans: Content of an nnU-Net plans file.
        configuration: Name of a 3D configuration, such as "3d_fullres".
        num_classes: Number of output channels.

    Returns:
        The network without deep supervision: an image (B, C, Z, Y, X) to logits (B, num_classes, Z, Y, X), where C is
        the number of normalisation schemes of the configuration.

    Raises:
        UserError: The configuration is missing or two-dimensional.
    """
    return segmentation_of(resolve_configuration(plans, configuration), num_classes)


def segmentation_of(resolved: dict[str, Any], num_classes: int) -> nn.Module:
    """Build the segmentation network of a resolved 3D configuration, see `build_network`."""
    trusted = trusted_network(resolved)
    name = _network_name(trusted)
    with _described(name):
        if name not in _OWN:
            return _build_with_nnunet(trusted, num_classes)
        input_channels = len(trusted["normalization_schemes"])
        return _OWN[name].segmentation(input_channels, num_classes, **trusted["architecture"]["arch_kwargs"])


def pretrained_part(network: nn.Module, resolved: dict[str, Any], levels: Levels) -> dict[str, Tensor]:
    """Parameters and buffers of a segmentation network that a pretraining fills.

    Args:
        network: From `segmentation_of`.
        resolved: The configuration that it was built from.
        levels: Of the pretraining.

    Returns:
        The network's tensors, by their names in the pyramid of `backbone_of`; one with several names comes once.
    """
    with torch.device("meta"):  # for the names only
        pyramid = backbone_of(resolved, levels)
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return {name: tensors[name_in_network(name)] for name in pyramid.used_tensors()}


def name_in_network(name: str) -> str:
    """What a pyramid's tensor is called in the segmentation network.

    `UNetPyramid` holds that network; the networks of this package hold their pyramid.
    """
    held = "network."
    return name[len(held) :] if name.startswith(held) else f"backbone.{name}"


def build_backbone(plans: dict[str, Any], configuration: str, levels: Levels) -> FeaturePyramid:
    """Build the network of the plans as a feature pyramid, see `backbone_of`.

    Args:
        plans: Content of an nnU-Net plans file.
        configuration: Name of a 3D configuration, such as "3d_fullres".
        levels: "encoder" for the maps of the encoder; "decoder" for those of the decoder and the bottleneck.

    Raises:
        UserError: The configuration is missing or two-dimensional, or its network is of another kind.
    """
    return backbone_of(resolve_configuration(plans, configuration), levels)


def backbone_of(resolved: dict[str, Any], levels: Levels) -> FeaturePyramid:
    """Build the network of a resolved 3D configuration as a feature pyramid.

    Returns:
        `UNetPyramid` around a U-Net of dynamic_network_architectures; `FPN3d`, `SwinPyramid`, `Pimpic3d`, `LapnPyramid`
        or `ViTPyramid` for plans that name `FPN3dUNet`, `SwinUNETR`, `PimpicUNet`, `LapnUNet` or `UNETR`.

    Raises:
        UserError: Its network is of another kind.
    """
    name = _network_name(resolved)
    if name not in _OWN and name.rsplit(".", 1)[-1] not in _UNET_CLASSES:
        raise UserError(
            f"The network {name} of the plans is not supported: use plans whose network is one of "
            f"{', '.join(_UNET_CLASSES)} (dynamic_network_architectures), {' or '.join(_OWN)}."
        )
    trusted = trusted_network(resolved)
    with _described(name):
        if name in _OWN:
            input_channels = len(trusted["normalization_schemes"])
            return _OWN[name].pyramid(input_channels, levels, **trusted["architecture"]["arch_kwargs"])
        return UNetPyramid(_build_with_nnunet(trusted, _ANY_NUMBER_OF_CLASSES), levels)


@contextmanager
def _described(network: str) -> Iterator[None]:
    """What goes wrong while a network is built is the plans' fault: its arguments are theirs."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"The network {network} cannot be built with the arch_kwargs of the plans "
                        f"({type(error).__name__}: {' '.join(str(error).split())[:300]}); mend them, or plan the "
                        f"dataset again.") from error  # fmt: skip


def _build_with_nnunet(trusted: dict[str, Any], num_classes: int) -> nn.Module:
    """Build a network from what `trusted_network` has seen; it may be changed."""
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager

    manager = ConfigurationManager(trusted)  # it adds to plans of older versions
    return get_network_from_plans(
        manager.network_arch_class_name,
        manager.network_arch_init_kwargs,
        manager.network_arch_init_kwargs_req_import,
        len(manager.normalization_schemes),
        num_classes,
        allow_init=True,
        deep_supervision=False,
    )


def resolve_configuration(plans: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a 3D configuration of the plans with what it inherits.

    Raises:
        UserError: The configuration is missing or two-dimensional; the 3D ones are listed.
    """
    configurations = plans["configurations"]
    usable = [n for n in configurations if len(_resolve(configurations, n).get("patch_size", ())) == 3]
    if name not in usable:
        reason = "is not three-dimensional" if name in configurations else "is not in the plans"
        raise UserError(
            f"Configuration {name} {reason}: choose a 3D one of the plans ({', '.join(usable) or 'there is none'})."
        )
    return _resolve(configurations, name)


def any_configuration(plans: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a configuration of the plans, of two dimensions too, with what it inherits.

    Raises:
        UserError: The configuration is missing.
    """
    if name not in plans["configurations"]:
        raise UserError(f"Configuration {name} is not in the plans, which have {', '.join(plans['configurations'])}: "
                        f"restore the plans that belong to it.")  # fmt: skip
    return _resolve(plans["configurations"], name)


def _resolve(configurations: dict[str, Any], name: str) -> dict[str, Any]:
    """Merge a configuration over its ancestors, as nnU-Net's PlansManager does, which needs all of nnU-Net."""
    chain: list[dict[str, Any]] = []
    parent: str | None = name
    while parent is not None:
        if parent not in configurations or len(chain) > len(configurations):
            raise UserError(
                f"Mend `inherits_from` of configuration {name} in the plans: it leads to {parent}, no further."
            )
        chain.append(configurations[parent])
        parent = configurations[parent].get("inherits_from")
    return {key: value for configuration in reversed(chain) for key, value in configuration.items()}


def network_entries(resolved: dict[str, Any]) -> dict[str, Any]:
    """The entries of a resolved configuration that its network is built from; all of those of an older nnU-Net."""
    return {"architecture": resolved["architecture"]} if "architecture" in resolved else dict(resolved)


def _network_name(configuration: dict[str, Any]) -> str:
    """Return the full class name; plans of older nnU-Net versions state the bare name."""
    if "architecture" in configuration:
        return str(configuration["architecture"]["network_class_name"])
    return str(configuration.get("UNet_class_name", "unknown"))
