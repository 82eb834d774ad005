"""From the representation of a voxel or a patch to the unit vector that a contrastive loss compares."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def projection_head(in_features: int, hidden_features: int, out_features: int) -> nn.Sequential:
    """Build the three-layer head of vox2vec (methods.md 1.2), which uses `hidden_features = in_features`.

    It maps (N, in_features) to (N, out_features), not normalised; in training N must be at least 2 (batch statistics).
    """
    return nn.Sequential(
        nn.Linear(in_features, hidden_features),
        nn.BatchNorm1d(hidden_features),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_features, hidden_features),
        nn.BatchNorm1d(hidden_features),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_features, out_features),
    )


def l2_normalise(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Divide each vector of the last axis by max(its length, eps): a zero vector stays zero, with a finite gradient.

    Half precision is raised to float32, where eps is not rounded to zero.
    """
    if x.dtype in (torch.bfloat16, torch.float16):
        x = x.float()
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(eps)
