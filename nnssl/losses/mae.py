"""Reconstruction of hidden blocks (MAE; Alice, section 3.1; methods.md 4.3)."""

from __future__ import annotations

import torch
from torch import Tensor

_EPS = 1e-6  # under the root, for blocks of one value


def normalised_blocks(blocks: Tensor) -> Tensor:
    """What is to be predicted: (x - mean) / sqrt(unbiased variance + 1e-6) of every block by itself.

    Args:
        blocks: (..., V) floating; half precisions are cast up to float32 first.

    Returns:
        The same shape; a block of one value becomes 0.
    """
    wide = blocks.to(torch.promote_types(blocks.dtype, torch.float32))
    variance, mean = torch.var_mean(wide, dim=-1, keepdim=True)
    return (wide - mean) / (variance + _EPS).sqrt()


def masked_mse(prediction: Tensor, target: Tensor, counted: Tensor) -> Tensor:
    """Mean squared error over the blocks that count, for every crop (Alice, eq. 1).

    Args:
        prediction: (B, N, V) of N blocks; half precisions are cast up.
        target: (B, N, V).
        counted: (B, N) bool, the hidden blocks.

    Returns:
        (B,) errors, each divided by the number of its own crop's values; exactly 0, with a gradient of 0, for a crop
        without a block that counts.
    """
    error = (prediction.to(target.dtype) - target).square().mean(dim=-1)
    weight = counted.to(error.dtype)
    return (error * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
