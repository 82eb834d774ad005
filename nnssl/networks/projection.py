"""From the representation of a voxel or a patch to the vector that a contrastive loss compares."""

from __future__ import annotations

from torch import nn


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


def batch_statistics_head(in_features: int, hidden_features: int, out_features: int) -> nn.Sequential:
    """Build the three-layer head of VoCo (methods.md 2.2): batch normalisation without weights or running statistics.

    It maps (N, in_features) to (N, out_features), not normalised, and always by the statistics of the N rows: N must be
    at least 2 in training, and should be 18 or more.
    """
    return nn.Sequential(
        nn.Linear(in_features, hidden_features),
        nn.BatchNorm1d(hidden_features, affine=False, track_running_stats=False),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_features, hidden_features),
        nn.BatchNorm1d(hidden_features, affine=False, track_running_stats=False),
        nn.ReLU(inplace=True),
        nn.Linear(hidden_features, out_features),
    )
