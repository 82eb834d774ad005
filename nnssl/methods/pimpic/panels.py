"""Pictures of PiMPiC's patches for `views.png`."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch

from nnssl.methods.base import Batch
from nnssl.methods.panel import Panel

_SHOWN_VOLUMES, _SHOWN_PAIRS = 2, 2


def crop_panels(batch: Batch) -> list[list[Panel]]:
    """For up to two volumes the pairs that share most and least: a slice with both boxes, and both crops."""
    rows = []
    for v in range(min(_SHOWN_VOLUMES, len(batch["crops"]))):
        pairs = batch["pairs"][batch["pairs"][:, 0] == v, 1:]
        overlap = batch["overlap"][v][pairs[:, 0], pairs[:, 1]]
        order = overlap.argsort(descending=True)  # from the largest overlap to the smallest
        shown = order[torch.linspace(0, len(order) - 1, min(_SHOWN_PAIRS, len(order))).long()]
        for i, j in pairs[shown].tolist():
            rows.append([_region_panel(batch, v, i, j), _overlap_panel(batch, v, i, j, 0),
                         _overlap_panel(batch, v, j, i, 1)])  # fmt: skip
    return rows


def _region_panel(batch: Batch, v: int, i: int, j: int) -> Panel:
    """The middle slice of what two crops share, assembled from the crops that it cuts, with their boxes."""
    crops, starts = (batch[key][v].numpy() for key in ("crops", "starts"))
    patch = crops.shape[2:]
    z = int(starts[[i, j], 0].mean() + patch[0] / 2)
    corner = starts.min(0)[1:]
    height, width = starts.max(0)[1:] + patch[1:] - corner
    image = np.full((height, width), crops.min(), dtype=np.float32)
    for crop, start in zip(crops, starts, strict=True):
        row, column = start[1:] - corner
        if 0 <= z - start[0] < patch[0]:
            image[row : row + patch[1], column : column + patch[2]] = crop[0, z - start[0]]
    own = [(*(float(c) for c in starts[k, 1:] - corner), float(patch[1]), float(patch[2])) for k in (i, j)]
    title = f"volume {v + 1}, slice {z + 1}: crops {i + 1} and {j + 1}"
    return Panel(image, title, boxes=cast(list[tuple[float, float, float, float]], own))


def _overlap_panel(batch: Batch, v: int, i: int, j: int, colour: int) -> Panel:
    """Crop i, in the middle slice of its common part with crop j, with the thin box of that part."""
    crop, (start, stop) = batch["crops"][v, i, 0].numpy(), batch["boxes"][v, i, j].tolist()
    z = (start[0] + stop[0]) // 2
    box = (float(start[1]), float(start[2]), float(stop[1] - start[1]), float(stop[2] - start[2]))
    share = batch["overlap"][v, i, j].item()
    title = f"crop {i + 1}, slice {z + 1}: {share:.2f} shared with {j + 1}"
    return Panel(crop[z], title, frames=[box], colour=colour)
