"""Networks from nnU-Net plans."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nnssl.core.errors import UserError
from nnssl.networks.fpn_unet import FPN3dUNet, SegmentationNetwork
from nnssl.networks.lapn_unet import LapnUNet
from nnssl.networks.nnformer import NNFormer
from nnssl.networks.pimpic_unet import PimpicUNet
from nnssl.networks.primus import Primus
from nnssl.networks.pyramid import FeaturePyramid, Levels
from nnssl.networks.segresnet import SegResNet, SegResNetDS
from nnssl.networks.stunet import STUNet
from nnssl.networks.swin import SwinUNETR
from nnssl.networks.trusted import trusted_network
from nnssl.networks.unet import UNetPyramid
from nnssl.networks.unet3d import UNet3D
from nnssl.networks.vit import UNETR

_UNET_CLASSES = ("PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet")
_ANY_NUMBER_OF_CLASSES = 2  # the segmentation layers are not part of a backbone


_OWN: dict[str, type[SegmentationNetwork]] = {
    f"{own.__module__}.{own.__qualname__}": own
    for own in (
        FPN3dUNet, SwinUNETR, PimpicUNet, LapnUNet, UNETR, NNFormer, Primus, SegResNet, SegResNetDS, UNet3D, STUNet,
    )
}  # fmt: skip


def segmentation_of(resolved: dict[str, Any], num_classes: int) -> nn.Module:
    """Build the segmentation network of a resolved 3D configuration, freshly initialised as nnU-Net does it.

    Args:
        resolved: See `resolve_configuration`.
        num_classes: Number of output channels.

    Returns:
        The network without deep supervision: an image (B, C, Z, Y, X) to logits (B, num_classes, Z, Y, X), where C is
        the number of normalisation schemes of the configuration.
    """
    trusted = trusted_network(resolved)
    name = _network_name(trusted)
    with _described(name):
        if name not in _OWN:
            return _build_with_nnunet(trusted, num_classes)
        input_channels = len(trusted["normalization_schemes"])
        return _OWN[name](input_channels, num_classes, **trusted["architecture"]["arch_kwargs"])


def pretrained_part(network: nn.Module, resolved: dict[str, Any], levels: Levels) -> dict[str, Tensor]:
    """Return the parameters and buffers of a segmentation network that a pretraining fills.

    Args:
        network: From `segmentation_of`.
        resolved: The configuration that it was built from.
        levels: Levels that the pretraining uses.

    Returns:
        The network's tensors, each under one name in the pyramid of `backbone_of`.
    """
    with torch.device("meta"):  # for the names only
        pyramid = backbone_of(resolved, levels)
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    return {name: tensors[name_in_network(name)] for name in pyramid.used_tensors()}


def name_in_network(name: str) -> str:
    """Name in the segmentation network of a tensor of its pyramid.

    `UNetPyramid` and `PrimusPyramid` contain that network; the other networks of this package contain their pyramid.
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
        `UNetPyramid` around a U-Net of dynamic_network_architectures; for plans that name a network of this package,
        the pyramid in its module.

    Raises:
        UserError: Its network is of another kind.
    """
    name = _network_name(resolved)
    if name not in _OWN and name.rsplit(".", 1)[-1] not in _UNET_CLASSES:
        raise UserError(f"the network {name} of the plans is not supported; use plans whose network is one of "
                        f"{', '.join(_UNET_CLASSES)} (dynamic_network_architectures), {' or '.join(_OWN)}"
                        )  # fmt: skip
    trusted = trusted_network(resolved)
    with _described(name):
        if name in _OWN:
            input_channels = len(trusted["normalization_schemes"])
            return _OWN[name].pyramid(input_channels, levels, **trusted["architecture"]["arch_kwargs"])
        return UNetPyramid(_build_with_nnunet(trusted, _ANY_NUMBER_OF_CLASSES), levels)


@contextmanager
def _described(network: str) -> Iterator[None]:
    """Turn any error while a network is built into a UserError: its arguments come from the plans."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the network {network} cannot be built with the arch_kwargs of the plans "
                        f"({type(error).__name__}: {' '.join(str(error).split())[:300]}); mend them, or plan the "
                        f"dataset again") from error  # fmt: skip


def _build_with_nnunet(trusted: dict[str, Any], num_classes: int) -> nn.Module:
    """Build a network from the result of `trusted_network`, which this may change."""
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
        raise UserError(f"configuration {name} {reason}; choose a 3D one of the plans ({', '.join(usable) or 'none'})")
    return _resolve(configurations, name)


def any_configuration(plans: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a 2D or 3D configuration of the plans with what it inherits.

    Raises:
        UserError: The configuration is missing.
    """
    if name not in plans["configurations"]:
        raise UserError(f"configuration {name} is not in the plans, which have {', '.join(plans['configurations'])}; "
                        f"restore the plans that belong to it")  # fmt: skip
    return _resolve(plans["configurations"], name)


def _resolve(configurations: dict[str, Any], name: str) -> dict[str, Any]:
    """Merge a configuration over its ancestors as nnU-Net's PlansManager does, without importing nnU-Net."""
    chain: list[dict[str, Any]] = []
    parent: str | None = name
    while parent is not None:
        if parent not in configurations or len(chain) > len(configurations):
            raise UserError(f"`inherits_from` of configuration {name} in the plans leads to {parent}, which ends "
                            f"nowhere; mend it")  # fmt: skip
        chain.append(configurations[parent])
        parent = configurations[parent].get("inherits_from")
    return {key: value for configuration in reversed(chain) for key, value in configuration.items()}


def network_entries(resolved: dict[str, Any]) -> dict[str, Any]:
    """The entries of a resolved configuration that determine its network; all entries for plans of an older nnU-Net."""
    return {"architecture": resolved["architecture"]} if "architecture" in resolved else dict(resolved)


def _network_name(configuration: dict[str, Any]) -> str:
    """Return the full class name; plans of older nnU-Net versions state the bare name."""
    if "architecture" in configuration:
        return str(configuration["architecture"]["network_class_name"])
    return str(configuration.get("UNet_class_name", "unknown"))
