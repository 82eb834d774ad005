"""A pretrained feature pyramid with a segmentation head: the network of the trainers, a function of plans alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.errors import UserError
from nnssl.finetuning.intensity import IntensityBridge
from nnssl.networks.build import backbone_of
from nnssl.networks.heads import LinearHead, NonLinearHead, SegmentationHead, upsampled_to
from nnssl.networks.pyramid import FeaturePyramid

_HEADS: dict[str, type[SegmentationHead]] = {"linear": LinearHead, "nonlinear": NonLinearHead}


class PyramidSegmentation(nn.Module):
    """Intensity bridge, pyramid, head. Any image size is taken: it is padded for the backbone, the logits are cropped.

    Args:
        backbone: The pretrained part.
        head: From the pyramid to logits at the size of its finest level.
        bridge: What gives the image the intensities of the pretraining; None where it has them already.
    """

    def __init__(self, backbone: FeaturePyramid, head: SegmentationHead, bridge: IntensityBridge | None) -> None:
        super().__init__()
        self.bridge, self.backbone, self.head = bridge, backbone, head
        self.frozen = False
        self._of_maps = [p for p in backbone.parameters() if p.requires_grad]  # the others would have no gradient

    def forward(self, x: Tensor) -> Tensor:
        """Map an image (B, C, Z, Y, X) in the plans' normalised values to logits (B, num_classes, Z, Y, X)."""
        size = x.shape[2:]
        if self.bridge is not None:
            x = self.bridge(x)
        x = padded_to_multiple(x, self.backbone.divisor)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            pyramid = self.backbone(x)
        return upsampled_to(self.head(pyramid), self.backbone.strides[0], size)

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


def build_segmentation(
    network: Mapping[str, Any], configuration: dict[str, Any], num_input_channels: int, num_classes: int
) -> PyramidSegmentation:
    """The network that a training and every prediction with it use.

    Args:
        network: `plans["nnssl"]["network"]`: levels ("encoder" or "decoder"), head ("linear" or "nonlinear"), intensity
            (channels of `IntensityBridge`, or None).
        configuration: Resolved 3D configuration of the plans.
        num_input_channels: Number of channels of the image.
        num_classes: Number of output channels.

    Raises:
        UserError: The plans describe a network of another kind, or a cascade.
    """
    if network["head"] not in _HEADS:
        raise UserError(f"the plans name the head {network['head']!r}; choose one of: {', '.join(_HEADS)}")
    backbone = backbone_of(configuration, network["levels"])
    if num_input_channels != backbone.input_channels:
        raise UserError("the second stage of a cascade also reads the first one's segmentation, which pretraining did "
                        "not; train 3d_fullres or 3d_lowres")  # fmt: skip
    head = _HEADS[network["head"]](backbone.channels, backbone.strides, num_classes)
    channels = network["intensity"]
    return PyramidSegmentation(backbone, head, None if channels is None else IntensityBridge(channels))


def padded_to_multiple(x: Tensor, divisor: tuple[int, int, int]) -> Tensor:
    """The image (B, C, Z, Y, X) with zeros after its end, as nnU-Net pads, so that `divisor` divides every axis."""
    z, y, x_ = (-size % d for size, d in zip(x.shape[2:], divisor, strict=True))
    return F.pad(x, (0, x_, 0, y, 0, z)) if z or y or x_ else x
