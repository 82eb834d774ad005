"""The heads of a probe: vox2vec's linear and non-linear head, on lists of voxels and on whole maps."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnssl.networks.heads import LinearHead, NonLinearHead, SegmentationHead
from nnssl.networks.pyramid import Stride

LINEAR, NONLINEAR = "linear", "nonlinear"
_MOMENTUM = 0.1  # of running means and deviations, once there have been as many updates as that stands for


class ProbeHeads(nn.Module):
    """Both heads on the same standardised features.

    Every channel is shifted and scaled to mean 0 and deviation 1, by running values: the features of different methods,
    levels and epochs differ in scale by orders of magnitude, and the heads have few steps to learn in. A linear
    classifier on standardised features is a linear classifier on the features.

    Both heads look at one voxel at a time (all kernels are 1x1x1), so that they can learn from a list of voxels and
    then be run on maps.

    Args:
        channels: Number of channels of each level, finest first.
        strides: Cumulative stride of each level.
        num_classes: With the background.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[Stride], num_classes: int) -> None:
        super().__init__()
        self.channels, self.num_classes = tuple(channels), num_classes
        self.standardise = nn.ModuleList(nn.BatchNorm3d(width, affine=False) for width in channels)
        self.heads = nn.ModuleDict({
            LINEAR: LinearHead(channels, strides, num_classes),
            NONLINEAR: NonLinearHead(channels, strides, num_classes),
        })  # fmt: skip
        # the same modules and parameters, for voxels whose cells were gathered at every level
        self._of_voxels = {name: _without_upsampling(head) for name, head in self.heads.items()}

    def of_voxels(self, features: Tensor) -> dict[str, Tensor]:
        """Map the representations (N, sum of the channels) of voxels to each head's logits (N, num_classes)."""
        # the voxels along the last axis: the convolutions' backward pass is six times as fast there on a CPU
        levels = [part.T[None, :, None, None] for part in features.split(self.channels, dim=1)]
        levels = [norm(level) for norm, level in zip(self.standardise, levels, strict=True)]
        return {name: head(levels)[0, :, 0, 0].T for name, head in self._of_voxels.items()}

    def of_maps(self, pyramid: Sequence[Tensor]) -> dict[str, Tensor]:
        """Map a pyramid, finest first, to each head's logits (B, num_classes, Z, Y, X) at the finest level's size."""
        levels = [norm(level.float()) for norm, level in zip(self.standardise, pyramid, strict=True)]
        return {name: head(levels) for name, head in self.heads.items()}

    def set_update(self, number: int) -> None:
        """Say how many updates there have been: the first ones count fully for the running values."""
        for module in self.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.momentum = max(_MOMENTUM, 1 / (number + 1))


def _without_upsampling(head: nn.Module) -> SegmentationHead:
    assert isinstance(head, SegmentationHead)
    twin = copy.copy(head)
    twin.factors = [(1, 1, 1)] * len(head.factors)
    return twin


def fresh_heads(seed: int, channels: Sequence[int], strides: Sequence[Stride], num_classes: int) -> ProbeHeads:
    """Heads whose initial weights depend on the seed alone; torch's random numbers go on as if nothing was drawn."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ProbeHeads(channels, strides, num_classes)
