"""Pictures of two views of a volume with the points that they share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from nnssl.methods.base import Panel

_PAIRS, _POINTS = 4, 8  # most of them that are shown


def matched_view_panels(crops: np.ndarray, points: np.ndarray) -> list[list[Panel]]:
    """Both crops of up to four pairs, in the slices that share most points, with eight of the points marked.

    Args:
        crops: (B, 2, C, Z, Y, X).
        points: (N, 2, 4) [pair, z, y, x] in the first and in the second crop; those of one slice of the first lie in
            one slice of the second.
    """
    rows = []
    for i in range(min(_PAIRS, len(crops))):
        mine = points[points[:, 0, 0] == i, :, 1:]  # (M, 2, 3)
        shown = mine
        if len(mine):
            slices, counts = np.unique(mine[:, 0, 0], return_counts=True)
            shown = mine[mine[:, 0, 0] == slices[counts.argmax()]]
            shown = shown[np.linspace(0, len(shown) - 1, min(_POINTS, len(shown))).round().astype(int)]
        rows.append([_view_panel(crops[i, k, 0], shown[:, k], f"pair {i + 1}, view {k + 1}") for k in range(2)])
    return rows


def _view_panel(crop: np.ndarray, points: np.ndarray, title: str) -> Panel:
    """The slice of a crop (Z, Y, X) in which the points (K, 3) lie; the middle one where there is none."""
    z = round(float(points[0, 0])) if len(points) else len(crop) // 2
    marks: Sequence[tuple[int, float, float]] = [(n + 1, float(y), float(x)) for n, (_, y, x) in enumerate(points)]
    return Panel(crop[z], f"{title}, slice {z + 1} of {len(crop)}", marks)
