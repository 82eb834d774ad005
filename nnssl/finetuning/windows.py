"""Sliding windows whose outputs are not averaged, as vox2vec's authors predict (methods.md 1.5)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# of one axis: the window's first voxel, and the part [start, stop) of the axis that it gives
Part = tuple[int, int, int]


def parts_of_axis(size: int, patch: int) -> list[Part]:
    """Windows along an axis that overlap by half, rounded up to an even number; the last one is shifted inside.

    Each gives what is more than half of the overlap from its inner ends.

    Args:
        size: Of the axis, at least `patch`.
        patch: Of the windows.
    """
    overlap = min(2 * -(-patch // 4), patch - 1)
    starts = [*range(0, size - patch, patch - overlap), size - patch]
    inner = overlap // 2
    return [(start, start + inner * (start > 0), start + patch - inner * (start + patch < size)) for start in starts]


@torch.inference_mode()
def logits_without_averaging(network: nn.Module, image: Tensor, patch_size: Sequence[int], heads: int) -> Tensor:
    """Predict a volume window by window; where the parts of two windows overlap, the later one is kept.

    Args:
        network: From (1, C, *patch) to logits (1, heads, *patch), in evaluation mode.
        image: (C, Z, Y, X), anywhere. Padded with 0 at the ends where it is smaller than the patch.
        patch_size: (3,).
        heads: Number of outputs.

    Returns:
        Logits (heads, Z, Y, X), float32, on the CPU.
    """
    size, device = image.shape[1:], next(network.parameters()).device
    short = [max(patch - side, 0) for side, patch in zip(size, patch_size, strict=True)]
    padded = F.pad(image, (0, short[2], 0, short[1], 0, short[0]))
    found = torch.empty((heads, *padded.shape[1:]))
    axes = [parts_of_axis(side, patch) for side, patch in zip(padded.shape[1:], patch_size, strict=True)]
    for parts in product(*axes):
        z, y, x = (slice(start, start + patch) for (start, _, _), patch in zip(parts, patch_size, strict=True))
        with torch.autocast(device.type, enabled=device.type == "cuda"):
            logits = network(padded[None, :, z, y, x].to(device))[0]
        given = (slice(None), *(slice(low, high) for _, low, high in parts))
        within = (slice(None), *(slice(low - start, high - start) for start, low, high in parts))
        found[given] = logits[within].float().cpu()
    return found[:, : size[0], : size[1], : size[2]]
