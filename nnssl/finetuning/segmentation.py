"""A pretrained feature pyramid with a segmentation head: the network of the trainers, a function of plans alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.checkpoints.intensity import IntensityBridge
from nnssl.core.errors import UserError
from nnssl.networks.build import backbone_of, pretrained_part, segmentation_of
from nnssl.networks.heads import LinearHead, NonLinearHead, SegmentationHead, upsampled_to
from nnssl.networks.primus import Primus
from nnssl.networks.pyramid import FeaturePyramid, padded_to_multiple

UNET: Literal["unet"] = "unet"
_HEADS: dict[str, type[SegmentationHead]] = {"linear": LinearHead, "nonlinear": NonLinearHead}


class PyramidSegmentation(nn.Module):
    """Intensity bridge, pyramid, head. Any image size is taken: it is padded for the backbone, the logits are cropped.

    Args:
        backbone: The pretrained part.
        head: From the pyramid to logits at the size of its finest level.
        bridge: What gives the image the intensities of the pretraining; None where it has them already.
        fixed_background: The head has one output for each class but the background, whose logit is 0: the largest
            logit then is a class if its sigmoid is above one half.
    """

    def __init__(
        self,
        backbone: FeaturePyramid,
        head: SegmentationHead,
        bridge: IntensityBridge | None,
        fixed_background: bool = False,
    ) -> None:
        super().__init__()
        self.fixed_background = fixed_background
        self.bridge, self.backbone, self.head = bridge, backbone, head
        self.input_channels, self.frozen = backbone.input_channels, False
        self._alone = _cannot_be_one_cell(backbone)
        self._of_maps = [p for p in backbone.parameters() if p.requires_grad]  # the others would have no gradient

    def forward(self, x: Tensor) -> Tensor:
        """Map an image (B, C, Z, Y, X) in the plans' normalised values to logits (B, num_classes, Z, Y, X)."""
        size = x.shape[2:]
        if self.bridge is not None:
            x = self.bridge(x)
        x = padded_to_multiple(x, self.backbone.divisor)
        if self._alone and tuple(x.shape[2:]) == self.backbone.divisor:
            x = F.pad(x, (0, self.backbone.divisor[2]))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            pyramid = self.backbone(x)
        logits = upsampled_to(self.head(pyramid), self.backbone.strides[0], size)
        return F.pad(logits, (0, 0, 0, 0, 0, 0, 1, 0)) if self.fixed_background else logits

    def pretrained_tensors(self) -> Mapping[str, Tensor]:
        """All of the backbone that its maps depend on."""
        return self.backbone.used_tensors()

    def own_tensors(self) -> Mapping[str, Tensor]:
        """Backbone and head, without what the maps do not depend on."""
        idle = tuple(f"backbone.{prefix}" for prefix in self.backbone.unused)
        return {name: tensor for name, tensor in saved_tensors(self).items() if not name.startswith(idle)}

    def check_patch(self, patch_size: Sequence[int], batch_size: int) -> None:
        """Raise UserError where the backbone cannot train on such patches, padded."""
        padded = [-(-size // d) * d for size, d in zip(patch_size, self.backbone.divisor, strict=True)]
        if self._alone and tuple(padded) == self.backbone.divisor:
            padded[2] *= 2
        self.backbone.check_patch(padded, batch_size)

    def freeze(self) -> None:
        """Keep the backbone as it is: no gradient, and its normalisation layers stay in evaluation mode."""
        self.frozen = True
        self.backbone.requires_grad_(False)
        self.backbone.eval()

    def unfreeze(self) -> list[nn.Parameter]:
        """Train the backbone again; returns those of its parameters that the logits depend on."""
        self.frozen = False
        for parameter in self._of_maps:
            parameter.requires_grad_(True)
        self.backbone.train(self.training)
        return self._of_maps

    def train(self, mode: bool = True) -> PyramidSegmentation:
        """As `nn.Module.train`, but a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self


class UNetSegmentation(nn.Module):
    """Intensity bridge and the plans' whole segmentation network; the pretraining fills a part of it.

    Args:
        network: From `nnssl.networks.build.segmentation_of`.
        part: Its pretrained part, see `nnssl.networks.build.pretrained_part`.
        input_channels: Number of channels of the image.
        bridge: What gives the image the intensities of the pretraining; None where it has them already.
    """

    def __init__(
        self, network: nn.Module, part: Mapping[str, Tensor], input_channels: int, bridge: IntensityBridge | None
    ) -> None:
        super().__init__()
        self.bridge, self.network, self.input_channels = bridge, network, input_channels
        names = {id(tensor): name for name, tensor in saved_tensors(network).items()}
        self._part = {name: names[id(tensor)] for name, tensor in part.items()}  # names survive a move to the device

    def forward(self, x: Tensor) -> Tensor:
        """Map an image (B, C, Z, Y, X) in the plans' normalised values to logits (B, num_classes, Z, Y, X)."""
        logits: Tensor = self.network(x if self.bridge is None else self.bridge(x))
        return logits

    @property
    def decoder(self) -> nn.Module:
        """Where nnU-Net switches deep supervision."""
        return self.network.decoder  # type: ignore[return-value]

    def pretrained_tensors(self) -> Mapping[str, Tensor]:
        """What the pretraining fills, by the names of its backbone."""
        tensors = saved_tensors(self.network)
        return {name: tensors[own] for name, own in self._part.items()}

    def own_tensors(self) -> Mapping[str, Tensor]:
        """All of the network."""
        return saved_tensors(self)

    def check_patch(self, patch_size: Sequence[int], batch_size: int) -> None:
        """Raise UserError where the network cannot train on such patches; nnU-Net's own fit their plans."""
        pyramid = getattr(self.network, "backbone", None)
        if isinstance(pyramid, FeaturePyramid):
            pyramid.check_patch(patch_size, batch_size)
        elif isinstance(self.network, Primus):
            self.network.check_size(patch_size)


def _cannot_be_one_cell(backbone: FeaturePyramid) -> bool:
    """Whether the network refuses images that leave a single voxel at its coarsest level, as instance norm does."""
    try:
        backbone.check_patch(backbone.divisor)
    except UserError:
        return True
    return False


def refuse_second_stage(resolved: dict[str, Any], configuration: str, trainer: str) -> None:
    """Raise UserError for the second stage of a cascade."""
    if resolved.get("previous_stage") is not None:
        raise UserError(f"{configuration} also reads the segmentation of {resolved['previous_stage']}, which no "
                        f"pretraining did; train 3d_fullres or 3d_lowres with {trainer}")  # fmt: skip


def refuse_other_channels(configuration: Mapping[str, Any], num_input_channels: int) -> None:
    """Raise UserError where a network would read more than the channels of the image."""
    if num_input_channels != len(configuration["normalization_schemes"]):
        raise UserError("the second stage of a cascade also reads the first one's segmentation, which pretraining did "
                        "not; train 3d_fullres or 3d_lowres")  # fmt: skip


def described_network(plans: Mapping[str, Any]) -> Any:
    """What the plans of a training say of its network, which prediction builds again from that alone.

    Raises:
        UserError: they say nothing.
    """
    network = plans.get("nnssl", {}).get("network")
    if network is None:
        raise UserError("these plans do not say how the network is built (nnssl: network); predict with the "
                        "plans.json that the training wrote into its model folder")  # fmt: skip
    return network


def build_segmentation(
    network: Mapping[str, Any], configuration: dict[str, Any], num_input_channels: int, num_classes: int
) -> Any:
    """The network that a training and every prediction with it use.

    Args:
        network: `plans["nnssl"]["network"]`: levels ("encoder" or "decoder"), head ("linear" and "nonlinear": on the
            feature maps; "unet": the plans' whole network), intensity (channels of `IntensityBridge`, or None),
            background ("fixed" for a logit of 0 on the feature maps; else it is trained), and backbone
            (`nnssl.networks.build.network_entries` of the pretraining's plans) where the feature maps are not those of
            the configuration's network.
        configuration: Resolved 3D configuration of the plans.
        num_input_channels: Number of channels of the image.
        num_classes: Number of output channels.

    Returns:
        `PyramidSegmentation` or `UNetSegmentation`.

    Raises:
        UserError: The plans describe a network of another kind, or a cascade.
    """
    levels, kind, channels = network["levels"], network["head"], network["intensity"]
    if kind not in (*_HEADS, UNET):
        raise UserError(f"the plans name the head {kind!r}; choose one of: {', '.join((*_HEADS, UNET))}")
    refuse_other_channels(configuration, num_input_channels)
    bridge = None if channels is None else IntensityBridge(channels)
    if kind == UNET:
        whole = segmentation_of(configuration, num_classes)
        return UNetSegmentation(whole, pretrained_part(whole, configuration, levels), num_input_channels, bridge)
    channels_only = {"normalization_schemes": configuration["normalization_schemes"]}
    backbone = backbone_of({**configuration, **network.get("backbone", {}), **channels_only}, levels)
    fixed = network.get("background") == "fixed"
    head = _HEADS[kind](backbone.channels, backbone.strides, num_classes - fixed)
    return PyramidSegmentation(backbone, head, bridge, fixed)


def saved_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name; a tensor with several names comes once."""
    saved = module.state_dict(keep_vars=True)
    everything = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor for name, tensor in everything.items() if name in saved}
