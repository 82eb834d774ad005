"""From the representation of a voxel or a patch to the vector that a contrastive loss compares."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from nnssl.losses.normalise import l2_normalise


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


class DinoHead(nn.Module):
    """Three-layer head with a bottleneck of unit length and a linear layer of unit directions (DINO; methods.md 4.2).

    Args:
        in_features: of the vectors.
        out_features: d of the result.
        hidden_features: of the two hidden layers.
        bottleneck: of the unit vectors before the last layer.
    """

    def __init__(self, in_features: int, out_features: int, hidden_features: int = 2048, bottleneck: int = 256) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(in_features, hidden_features),
            nn.GELU(),
            nn.Linear(hidden_features, hidden_features),
            nn.GELU(),
            nn.Linear(hidden_features, bottleneck),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.directions = nn.Linear(bottleneck, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to cosines with the directions (..., out_features), each in -1..1."""
        # the authors' weight normalisation with its lengths frozen at 1
        return functional.linear(l2_normalise(self.mlp(x)), l2_normalise(self.directions.weight))
