"""Heads of Alice: from tokens to the vectors that a student and a target compare (methods.md 4.2).

Student and target have a head each, which normalises by the statistics of its own vectors, as in MoCo v3: in training
those of the step, in evaluation running ones.
"""

from __future__ import annotations

from torch import Tensor, nn

from nnssl.networks.contrastive import BatchNormHead, DinoHead, RowNorm


class MocoHead(BatchNormHead):
    """Projector of MoCo v3, over all tokens of the step, and a last batch norm over what is compared.

    The mean of a crop's vectors, and what CASA makes of them, are no longer of mean 0 and deviation 1 over the step.

    Args:
        width: of the tokens.
        hidden: width of both hidden layers.
        dim: d of the vectors.
    """

    def __init__(self, width: int, hidden: int, dim: int) -> None:
        super().__init__((width, hidden, hidden, dim))
        self.across, self.within = RowNorm(dim), RowNorm(dim)


class AliceDinoHead(DinoHead):
    """DINO's head; its vectors, and those that CASA makes of them, may be standardised over the tokens of the step.

    Args:
        width, hidden, bottleneck, dim: of `DinoHead`.
        standardise: False for DINO's head as it is.
    """

    def __init__(self, width: int, hidden: int, bottleneck: int, dim: int, standardise: bool) -> None:
        super().__init__(width, dim, hidden, bottleneck)
        self.across = nn.Identity()
        self.within: nn.Module = RowNorm(dim, running=False) if standardise else nn.Identity()

    def forward(self, x: Tensor, directions: nn.Linear | None = None) -> Tensor:
        """Map tokens (..., width) to vectors (..., dim)."""
        vectors: Tensor = self.within(self.plain(x, directions))
        return vectors

    def plain(self, x: Tensor, directions: nn.Linear | None = None) -> Tensor:
        """The vectors before they are standardised."""
        return super().forward(x, directions)
