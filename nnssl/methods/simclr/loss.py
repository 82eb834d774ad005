"""NT-Xent, the contrast of SimCLR (Chen et al., ICML 2020, eq. 1), through the streamed InfoNCE."""

from __future__ import annotations

import torch
from torch import Tensor

from nnssl.methods.shared.info_nce import info_nce


def nt_xent(
    vectors: Tensor, temperature: float, within_scans: bool, sources: Tensor, exclude_radius_mm: float = 0.0
) -> Tensor:
    """Return the mean over all views of

        -log e^{<z, z'>/tau} / sum_k e^{<z, z_k>/tau},

    where z' is the other view of the same crop and k runs over all other views: of all scans and processes, or of the
    same scan. The MEAN over processes of what is returned is the loss of all scans.

    Args:
        vectors: (V, K, 2, d) of both views of K crops of each of V scans, need not be normalised.
        temperature: tau.
        within_scans: whether crops have negatives in their own scan alone.
        sources: (V, K, 4) [volume, z, y, x] of the crops' centres, in mm.
        exclude_radius_mm: crops of one scan with centres this near to each other are no negatives.

    Returns:
        () loss, attached to the graph.
    """
    if not within_scans:
        first, second = vectors.flatten(0, 1).unbind(1)
        return info_nce(first, second, temperature, "mean", sources.flatten(0, 1), exclude_radius_mm)
    losses = [
        info_nce(views[:, 0], views[:, 1], temperature, "mean", places, exclude_radius_mm, across_ranks=False)
        for views, places in zip(vectors, sources, strict=True)
    ]
    return torch.stack(losses).mean()
