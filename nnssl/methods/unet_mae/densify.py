"""Encoder maps of visible cells, made dense before skip connections hand them on (Tian et al., ICLR 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nnssl.networks.sparse import HiddenCells


class Densify(nn.Module):
    """A learned token in the hidden cells of each level, and a 3x3x3 convolution that keeps the channels.

    Args:
        channels: Of the levels, finest first.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.tokens = nn.ParameterList(nn.Parameter(torch.empty(c)) for c in channels)
        for token in self.tokens:
            nn.init.normal_(token, std=0.02)
        self.layers = nn.ModuleList(nn.Conv3d(c, c, 3, padding=1) for c in channels)

    def forward(self, levels: Sequence[Tensor], cells: HiddenCells) -> list[Tensor]:
        """Map levels [(B, C_l, Z_l, Y_l, X_l)] to the same shapes."""
        filled = (
            torch.where(cells(level.shape[2:]), token.to(level.dtype).view(1, -1, 1, 1, 1), level)
            for level, token in zip(levels, self.tokens, strict=True)
        )
        return [layer(level) for level, layer in zip(filled, self.layers, strict=True)]
