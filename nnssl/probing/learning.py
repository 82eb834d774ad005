"""What the heads learn from a crop: nnU-Net's loss, estimated from a bounded number of its voxels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

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
        classes: (Z, Y, X), -1 where a voxel counts for nothing; some voxel has to count.
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
