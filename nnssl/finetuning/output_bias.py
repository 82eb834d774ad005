"""Output biases from which a fresh segmentation network predicts each class as often as it occurs.

Without them a network must first learn the frequencies. An optimiser with a long memory (SGD with a momentum of 0.99)
then overshoots, and stays at the background for hundreds of steps; a small rate takes as long to get there (Lin et al.,
arXiv 1708.02002, section 3.3, who start at 0.01 for the rare class).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from nnssl.data.classes import foreground_classes

RAREST = 0.01  # a class that is rarer still starts here: its gradient would vanish in the Dice loss
_CASES = 10  # label maps that are read
_VOXELS = 2**24  # of a label map: of a larger one every n-th plane is counted


def class_frequencies(dataset: Any, label_manager: Any) -> np.ndarray:
    """Share of the voxels that each output is right for, in the first label maps.

    Args:
        dataset: nnU-Net's data set of training cases.
        label_manager: nnU-Net's.

    Returns:
        (C,): of background and labels, which sum to 1; or of regions. What is to be ignored does not count.
    """
    regions = label_manager.has_regions
    values = [np.atleast_1d(which) for which in foreground_classes(label_manager)]
    counts = np.zeros(max(int(which.max()) for which in values) + 1)
    total = 0
    for case in sorted(dataset.identifiers)[:_CASES]:
        labels = np.asarray(dataset.load_case(case)[1][:])[0]  # whole: a compressed one is stored in blocks
        for plane in labels[:: -(-labels.size // _VOXELS)]:
            known = plane if label_manager.ignore_label is None else plane[plane != label_manager.ignore_label]
            total += known.size
            counts += np.bincount(np.maximum(known, 0).ravel(), minlength=len(counts))[: len(counts)]
    shares = np.array([counts[which].sum() for which in values]) / max(total, 1)
    return shares if regions else np.concatenate([[1 - shares.sum()], shares])


def start_at_frequencies(layers: Sequence[nn.Module], frequencies: np.ndarray, regions: bool) -> np.ndarray:
    """Set the biases of segmentation layers, so that their mean output has these frequencies.

    Args:
        layers: each with C output channels; those without a bias stay as they are.
        frequencies: (C,) of `class_frequencies`.
        regions: whether the outputs are independent.

    Returns:
        (C,) that the outputs start from: at least `RAREST` each.
    """
    shares = np.clip(frequencies, RAREST, 1 - RAREST)
    if not regions:
        shares = shares / shares.sum()
    bias = torch.from_numpy(np.log(shares / (1 - shares)) if regions else np.log(shares))
    with torch.no_grad():
        for layer in layers:
            if isinstance(layer.bias, torch.Tensor):
                layer.bias.copy_(bias)
    return shares
