"""The current features of a backbone that is being pretrained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from nnssl.methods.base import Method
from nnssl.networks.pyramid import FeaturePyramid, padded_to_multiple


class FrozenFeatures:
    """Runs a method's backbone in evaluation mode, without gradient, and leaves it as it was.

    Levels that the method has the network leave out are left out here too.

    Args:
        method: of the run.
        device: of the run.
        precision: of the run.
    """

    def __init__(self, method: Method, device: torch.device, precision: torch.dtype) -> None:
        self.backbone: FeaturePyramid = method.backbone
        self.device, self.precision = device, precision
        self.finest = self.backbone.finest
        self.channels, self.strides = self.backbone.channels[self.finest :], self.backbone.strides[self.finest :]

    @torch.no_grad()
    def __call__(self, image: Tensor) -> list[Tensor]:
        """Map an image (B, C, Z, Y, X) to the levels that there are, finest first."""
        mixed = self.precision != torch.float32
        with (
            _in_evaluation_mode(self.backbone),
            torch.autocast(self.device.type, dtype=self.precision if mixed else None, enabled=mixed),
        ):
            pyramid: list[Tensor] = self.backbone(padded_to_multiple(image, self.backbone.divisor))
        return pyramid[self.finest :]


@contextmanager
def _in_evaluation_mode(backbone: FeaturePyramid) -> Iterator[None]:
    before = {module: module.training for module in backbone.modules()}
    backbone.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training
