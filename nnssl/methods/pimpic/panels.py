"""Pictures of PiMPiC's patches for `views.png`."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch

from nnssl.methods.base import Batch
from nnssl.methods.panel import Panel

_SHOWN_VOLUMES, _SHOWN_PAIRS = 2, 3


def crop_panels(batch: Batch) -> list[list[Panel]]:
    """For up to two volumes: a slice with the boxes of its crops, then three pairs of crops with their overlap."""
    rows = []
    for v in range(min(_SHOWN_VOLUMES, len(batch["crops"]))):
        rows.append([_region_panel(batch, v)])
        pairs = batch["pairs"][batch["pairs"][:, 0] == v, 1:]
        overlap = batch["overlap"][v][pairs[:, 0], pairs[:, 1]]
        order = overlap.argsort(descending=True)  # from the largest overlap to the smallest
        shown = order[torch.linspace(0, len(order) - 1, min(_SHOWN_PAIRS, len(order))).long()]
        for i, j in pairs[shown].tolist():
            rows.append([_overlap_panel(batch, v, i, j), _overlap_panel(batch, v, j, i)])
    return rows


def _region_panel(batch: Batch, v: int) -> Panel:
    """The middle slice of the anchor patch, assembled from the crops that it cuts, with their boxes."""
    crops, starts, anchor = (batch[key][v].numpy() for key in ("crops", "starts", "anchor"))
    patch = crops.shape[2:]
    z = int(np.clip(anchor[0] + patch[0] // 2, starts[:, 0].min(), starts[:, 0].max() + patch[0] - 1))
    corner = np.minimum(starts.min(0), anchor)[1:]
    height, width = np.maximum(starts.max(0), anchor)[1:] + patch[1:] - corner
    image, boxes = np.full((height, width), crops.min(), dtype=np.float32), []
    for crop, start in zip(crops, starts, strict=True):
        row, column = start[1:] - corner
        if 0 <= z - start[0] < patch[0]:
            image[row : row + patch[1], column : column + patch[2]] = crop[0, z - start[0]]
            boxes.append((float(row), float(column), float(patch[1]), float(patch[2])))
    own = (*(float(c) for c in anchor[1:] - corner), float(patch[1]), float(patch[2]))
    title = f"volume {v + 1}, slice {z + 1}: anchor (thick) and {len(boxes)} of {len(crops)} crops"
    return Panel(image, title, boxes=[cast(tuple[float, float, float, float], own)], frames=boxes)


def _overlap_panel(batch: Batch, v: int, i: int, j: int) -> Panel:
    """Crop i, in the middle slice of its common part with crop j, with the box of that part."""
    crop, (start, stop) = batch["crops"][v, i, 0].numpy(), batch["boxes"][v, i, j].tolist()
    z = (start[0] + stop[0]) // 2
    box = (float(start[1]), float(start[2]), float(stop[1] - start[1]), float(stop[2] - start[2]))
    share = batch["overlap"][v, i, j].item()
    title = f"volume {v + 1}, crop {i + 1}, slice {z + 1}: {share:.2f} shared with crop {j + 1}"
    return Panel(crop[z], title, boxes=[box])
