"""Unit vectors, as every contrastive loss of the package takes them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def l2_normalise(x: Tensor, dim: int = -1, eps: float = 1e-8) -> Tensor:
    """Return x / max(|x|, eps): a zero vector stays zero (cosine 0 with everything) and has a finite gradient.

    Args:
        x: any floating tensor; half precisions are cast up to float32 first.
        dim: axis of the vectors.
        eps: smallest length that is divided by.

    Returns:
        A tensor of x's shape, float64 for float64 and float32 for all else.
    """
    return functional.normalize(x if x.dtype == torch.float64 else x.float(), dim=dim, eps=eps)
