"""PiC: what two patches have in common attracts, what only one of them shows repels it (PiMPiC, eq. 2)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

# Pairs of rows [overlap of patch 1, overlap of patch 2, rest of patch 1, rest of patch 2]; the first is the positive.
_PAPER_PAIRS = ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
_CODE_PAIRS = ((0, 1), (0, 1), (0, 2), (0, 3), (1, 2), (1, 3))  # the positive twice, the two rests never


def pic_loss(
    rows: Tensor,
    temperature: float = 1.0,
    objective: Literal["code", "paper"] = "code",
    weights: Tensor | None = None,
) -> Tensor:
    """Return the contrastive loss of N overlapping pairs of patches (methods.md 3.3).

    With e_ij the exponential of the cosine of rows i and j over the temperature, a pair costs

        code:  -log [ 2 e_01 / (2 e_01 + e_02 + e_03 + e_12 + e_13) ],    chance level ln 3, at tau 1 never below 0.2395
        paper: -log [ e_01 / (e_01 + e_02 + e_03 + e_12 + e_13 + e_23) ], chance level ln 6, at tau 1 never below 0.7338

    Args:
        rows: (N, 4, d) unit vectors, float32 or float64: overlap in patch 1, overlap in patch 2, rest of patch 1, rest
            of patch 2. N may be 0: the loss is then 0, and its gradient too.
        temperature: tau > 0.
        objective: which of the two forms.
        weights: (N,) what each pair counts; None for the mean.

    Returns:
        () sum of the weighted pairs, attached to the graph.
    """
    cosines = (rows @ rows.mT / temperature).flatten(1)
    pairs = _CODE_PAIRS if objective == "code" else _PAPER_PAIRS
    terms = cosines[:, [4 * i + j for i, j in pairs]]
    loss = torch.logsumexp(terms, dim=1) - terms[:, 0] - (math.log(2) if objective == "code" else 0.0)
    return (loss * (1 / max(len(rows), 1) if weights is None else weights)).sum()
