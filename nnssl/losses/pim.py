"""PiM: the similarity of two patches is to be the share of their volumes that they have in common (PiMPiC, eq. 1)."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-6  # inside the logarithm, in the authors' code
_STEEP = 0.95  # the distance from which on `d_extension` continues the loss by a straight line


def pair_distances(embeddings: Tensor, overlap: Tensor, include_diagonal: bool = False) -> Tensor:
    """Return D = |S - C| of the pairs of patches, where C are the cosines of their embeddings.

    Args:
        embeddings: (..., N, d) unit vectors, N >= 2.
        overlap: (..., N, N) S, the common share of two patches, in [0, 1]; of the same type as the embeddings.
        include_diagonal: take all N^2 pairs, both orders and each patch with itself, as the authors' code does.

    Returns:
        (..., N (N - 1) / 2) in [0, 2], pairs i < j; or (..., N^2).
    """
    distance = (overlap - embeddings @ embeddings.mT).abs()
    if include_diagonal:
        return distance.flatten(-2)
    count = distance.shape[-1]
    i, j = torch.triu_indices(count, count, offset=1, device=distance.device)
    return distance[..., i, j]


def pim_loss(distance: Tensor, d_extension: bool = False, eps: float = EPS) -> Tensor:
    """Return the mean of -log(1 - D + eps) over the pairs (methods.md 3.3).

    D is above 1 where overlapping patches have a cosine below S - 1. The authors' code clamps it to 1: such a pair
    costs -log(eps) = 13.8 and has no gradient, and one just below 1 has a gradient of up to 1/eps. With `d_extension`
    the loss goes on as a straight line of slope 1 / (0.05 + eps), about 20, from D = 0.95 on.

    Args:
        distance: any number of D >= 0, float32 or float64; see `pair_distances`.
        d_extension: continue the loss in a straight line, for a gradient that is bounded and never zero.
        eps: keeps the logarithm finite; at 0 it is the paper's equation, defined for D < 1 only.

    Returns:
        () mean, attached to the graph.
    """
    if not d_extension:
        return -(1 - distance.clamp(0, 1) + eps).log().mean()
    room = 1 - _STEEP + eps
    line = (distance - _STEEP).clamp_min(0) / room
    return (line - (1 - distance.clamp_max(_STEEP) + eps).log()).mean()
