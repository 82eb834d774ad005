"""The losses of VoCo (Wu et al., CVPR 2024): position prediction and the regulariser of the bases.

The authors' code and their paper differ (methods.md 2.3), and each has its own functions here. y are labels; l are
logits, the similarity of a crop to a base. All is computed in float32 (float64 for float64 input) under autocast too.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nnssl.networks.contrastive import l2_normalise

EPS = 1e-6  # of the authors' code: inside the logarithm and in the denominators


class VoCoTerms(NamedTuple):
    """The scalars of a step; the loss is positive + negative + weight * regulariser.

    `dead_pairs` is the fraction of pairs with a positive label that do not attract, because their cosine is 0 or less.
    """

    positive: Tensor
    negative: Tensor
    regulariser: Tensor
    dead_pairs: Tensor


def code_terms(
    student_crops: Tensor,
    student_bases: Tensor,
    teacher_crops: Tensor,
    teacher_bases: Tensor,
    labels: Tensor,
    detach: bool = True,
) -> VoCoTerms:
    """The objective of the authors' code: a student and a momentum teacher (methods.md 2.3).

    The logits are the mean of ReLU cos(student's crop, teacher's base) and ReLU cos(teacher's crop, student's base).

    Args:
        student_crops: (B, M, d) vectors of the M crops of B volumes.
        student_bases: (B, n, d) vectors of the n bases.
        teacher_crops: (B, M, d), without gradient.
        teacher_bases: (B, n, d), without gradient.
        labels: (B, M, n) overlap fractions.
        detach: see `base_regulariser`.
    """
    with torch.autocast(labels.device.type, enabled=False):
        logits = (cosines(student_crops, teacher_bases).relu() + cosines(teacher_crops, student_bases).relu()) / 2
        positive, negative = prediction_loss(labels, logits)
        return VoCoTerms(positive, negative, base_regulariser(student_bases, detach), dead_fraction(labels, logits))


def paper_terms(crops: Tensor, bases: Tensor, labels: Tensor) -> VoCoTerms:
    """The objective of the paper (equations 2, 3 and 5): one network, the bases detached in the prediction.

    The result has two parts of equation 3's single term, for pairs with and without overlap.

    Args:
        crops: (B, M, d) vectors of the M crops of B volumes.
        bases: (B, n, d) vectors of the n bases.
        labels: (B, M, n) overlap fractions.
    """
    with torch.autocast(labels.device.type, enabled=False):
        logits = cosines(crops, bases.detach())
        terms = paper_prediction(labels, logits)
        overlap = labels > 0
        positive, negative = (torch.where(mask, terms, 0).mean() for mask in (overlap, ~overlap))
        return VoCoTerms(positive, negative, paper_regulariser(bases), dead_fraction(labels, logits))


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosines (..., M, n) of vectors (..., M, d) and (..., n, d); 0 with a finite gradient for zero vectors."""
    return l2_normalise(a) @ l2_normalise(b).transpose(-1, -2)


def prediction_loss(labels: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The code's L_pos = sum y (-log(1 - |y - l| + eps)) / (sum y + eps) and L_neg = sum_{y=0} l^2 / (#{y=0} + eps).

    Each is computed per volume and averaged over the volumes. Clip the gradient: that of L_pos grows to y/eps for l = 0
    and y = 1.

    Args:
        labels: (..., M, n) in [0, 1].
        logits: (..., M, n) in [0, 1]; cosines just above 1 by rounding are fine.

    Returns:
        Two scalars.
    """
    distance = (labels - logits.clamp(max=1)).abs()
    attraction = -labels * (1 - distance + EPS).log()
    positive = attraction.sum((-2, -1)) / (labels.sum((-2, -1)) + EPS)
    apart = (labels == 0).to(logits.dtype)
    negative = (apart * logits.square()).sum((-2, -1)) / (apart.sum((-2, -1)) + EPS)
    return positive.mean(), negative.mean()


def paper_prediction(labels: Tensor, logits: Tensor) -> Tensor:
    """The terms -log(1 - |y - l|) of equation 3, (..., M, n); its loss is their mean.

    1 - d is clamped at 1e-6, because the paper's term can be infinite or undefined (a negative cosine with a label of
    1). Such a pair has a value of 13.8 and no gradient.
    """
    return -(1 - (labels - logits).abs()).clamp(min=EPS).log()


def base_regulariser(bases: Tensor, detach: bool = True) -> Tensor:
    """The code's L_reg: mean over pairs i < j of the bases of a volume of ReLU(cos(b_i, b_j))^2.

    Args:
        bases: (..., n, d).
        detach: as in the code, b_j gets no gradient, so that the last base gets none and the first the most.

    Returns:
        A scalar, the mean over the volumes; 0 and attached to the graph for a single base.
    """
    units = l2_normalise(bases)
    return _mean_over_pairs((units @ (units.detach() if detach else units).transpose(-1, -2)).relu().square())


def paper_regulariser(bases: Tensor) -> Tensor:
    """Equation 5 over unordered pairs: the mean of |cos(b_i, b_j)| over i < j (literally read it is twice that)."""
    return _mean_over_pairs(cosines(bases, bases).abs())


def dead_fraction(labels: Tensor, logits: Tensor) -> Tensor:
    """Fraction of pairs with a positive label whose logit is not positive; a scalar without gradient."""
    overlap = labels > 0
    return (overlap & (logits.detach() <= 0)).sum() / overlap.sum().clamp(min=1)


def _mean_over_pairs(values: Tensor) -> Tensor:
    """Mean of the entries above the diagonal of matrices (..., n, n)."""
    n = values.shape[-1]
    return values.triu(1).sum((-2, -1)).mean() / max(n * (n - 1) / 2, 1)
