"""What the heads learn from a crop: nnU-Net's loss, estimated from a bounded number of its voxels."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nnssl.methods.base import Method
from nnssl.networks.heads import LinearHead, NonLinearHead, SegmentationHead
from nnssl.networks.pyramid import FeaturePyramid, Stride, padded_to_multiple
from nnssl.pretraining.probe_data import Values


class DiceCounts:
    """Sums over the windows of one case.

    Args:
        values: of the label map, by class.
        labels: the values of each label by name.
    """

    def __init__(self, values: Values, labels: Mapping[str, Values]) -> None:
        self._confusion = np.zeros((len(values), len(values)), dtype=np.int64)  # truth, prediction
        self._members = {name: np.isin(values, of_label) for name, of_label in labels.items()}

    def add(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Classes of some voxels, in any shape; those whose truth is -1 do not count."""
        counted, size = truth >= 0, len(self._confusion)
        pairs = truth[counted] * size + predicted[counted]
        self._confusion += np.bincount(pairs, minlength=size * size).reshape(size, size)

    def dice(self) -> dict[str, float]:
        """2 |A and B| / (|A| + |B|) by label; NaN for a label that the case lacks."""
        found = {}
        for name, member in self._members.items():
            truth, predicted = self._confusion[member].sum(), self._confusion[:, member].sum()
            both = self._confusion[np.ix_(member, member)].sum()
            found[name] = float(2 * both / (truth + predicted)) if truth else float("nan")
        return found


def mean_dice(cases: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each label over the cases that have it, and under "" the mean of those means; absent labels are left out.

    Args:
        cases: Dice by label.
    """
    names = list(cases[0]) if cases else []
    by_label = {}
    for name in names:
        known = [case[name] for case in cases if not np.isnan(case[name])]
        if known:
            by_label[name] = float(np.mean(known))
    return {"": float(np.mean(list(by_label.values()))), **by_label} if by_label else {}


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
        """Map an image (B, C, Z, Y, X) to the levels of the backbone, finest first."""
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


VOXELS = 1024  # of a crop, for one step of the heads
_EPS = 1e-5


class VoxelSample(NamedTuple):
    """Voxels of a crop.

    Args:
        voxels: (N, 3) int64 (z, y, x).
        classes: (N,) int64.
        weights: (N,) float32, how many voxels of the crop each stands for, over their mean: the mean weight is 1.
    """

    voxels: np.ndarray
    classes: np.ndarray
    weights: np.ndarray


def sample_voxels(rng: np.random.Generator, classes: np.ndarray, count: int = VOXELS) -> VoxelSample:
    """Draw voxels of a crop: half as frequent as their classes are, half the same number of each class present.

    The weights undo the second half, so that weighted sums over the voxels estimate sums over the crop without bias:
    the heads see every class in every step and learn the frequencies that the crop has.

    Args:
        rng: source of the draws, with repetition.
        classes: (Z, Y, X), -1 where a voxel counts for nothing; one voxel at least must count.
        count: voxels to draw, about.
    """
    flat = classes.ravel()
    numbers = np.bincount(flat[flat >= 0])
    present = np.flatnonzero(numbers)
    total = int(numbers.sum())
    chosen, weights = [], []
    for k in present:
        own = int(numbers[k])
        drawn = max(1, round(count / 2 * (own / total + 1 / len(present))))
        chosen.append(np.flatnonzero(flat == k)[rng.integers(own, size=drawn)])
        weights.append(np.full(drawn, own / drawn, dtype=np.float32))
    index, weight = np.concatenate(chosen), np.concatenate(weights)
    return VoxelSample(np.stack(np.unravel_index(index, classes.shape), axis=1), flat[index], weight / weight.mean())


def probe_loss(logits: Tensor, classes: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy plus 1 - soft Dice of the foreground classes that are present, both weighted.

    Args:
        logits: (N, K).
        classes: (N,) int64 below K.
        weights: (N,).
    """
    cross_entropy = (weights * F.cross_entropy(logits, classes, reduction="none")).mean()
    truth = F.one_hot(classes, logits.shape[1]).to(logits.dtype)
    both, of_truth, predicted = (weights @ t for t in (logits.softmax(1) * truth, truth, logits.softmax(1)))
    present = (of_truth > 0).to(logits.dtype)
    present[0] = 0
    dice = (2 * both + _EPS) / (of_truth + predicted + _EPS)
    return cross_entropy + (present * (1 - dice)).sum() / present.sum().clamp(min=1)


def fit_step(optimiser: torch.optim.Optimizer, logits: dict[str, Tensor], classes: Tensor, weights: Tensor) -> None:
    """One step of the heads; each has its own parameters, so that their losses are simply added."""
    optimiser.zero_grad(set_to_none=True)
    torch.stack([probe_loss(each, classes, weights) for each in logits.values()]).sum().backward()
    optimiser.step()
