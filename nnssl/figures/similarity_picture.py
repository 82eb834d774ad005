"""The picture of a similarity: reference, heat map in three planes, components and profile against the distance."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from nnssl.figures.canvas import (
    CELL,
    HEAT,
    Overlay,
    draw_bar,
    draw_planes,
    height_of_planes,
    outline_cell,
    page,
    parts_of,
    row_of_planes,
    save_png,
)
from nnssl.figures.similarity import Similarity, mean_by_distance
from nnssl.matching.images import PreparedImage
from nnssl.matching.picture import format_mm

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PLOTS = 3.6  # inches high
_ORANGE = "#D55E00"
_DOTS = 1_500  # more hide each other, and make the file large


def draw_similarity(
    found: Similarity, query: PreparedImage, key: PreparedImage, shown: NDArray[np.bool_],
    patch: Sequence[int], features: str, file: Path,
) -> None:  # fmt: skip
    """Write the PNG.

    Args:
        found: the numbers.
        query: image with the reference.
        key: image that was searched.
        shown: (Z, Y, X) cells of the searched image that are body.
        patch: (z, y, x) voxels of the coarsest cell, which is outlined around the reference.
        features: what they are, for the title.
        file: where to write it.
    """
    heights = [height_of_planes(query, found.reference), height_of_planes(key, found.best), _PLOTS]
    where = format_mm(query.geometry.grid_to_world(found.reference))
    figure = page(sum(heights) + 0.5, f"Similarity to one place ({features})")
    rows = parts_of(figure, heights)
    axes, beside = row_of_planes(rows[0], query, found.reference, f"Reference in {query.name} at {where} mm (LPS)")
    draw_planes(axes, query, found.reference)
    outline_cell(axes, query, found.reference, patch)
    _draw_legend(beside, np.asarray(patch) * query.geometry.spacing)
    same = found.best is found.reference
    title = f"Cosine similarity in {key.name}" + ("" if same else
             f", largest at {format_mm(key.geometry.grid_to_world(found.best))} mm")  # fmt: skip
    axes, beside = row_of_planes(rows[1], key, found.best, title)
    ends = _ends(found.map[shown])
    heat = draw_planes(axes, key, found.best, Overlay(found.map, shown, found.stride, ends))
    assert heat is not None
    draw_bar(rows[1], beside, heat, "cosine similarity")
    left, right = rows[2].subplots(1, 2)
    origin = "the reference" if same else "the most similar place"
    _draw_components(left, found, f"distance to {origin} (mm)")
    _draw_profile(right, found, f"distance to {origin} (mm)")
    save_png(figure, file)


def _ends(similarities: NDArray[np.float32]) -> tuple[float, float]:
    return float(np.percentile(similarities, 0.5)), float(similarities.max())


def _draw_legend(axis: Axes, cell_mm: NDArray[np.float64]) -> None:
    from matplotlib.lines import Line2D

    size = " x ".join(f"{mm:.0f}" for mm in cell_mm[::-1])
    ring = Line2D([], [], linestyle="", marker="o", markersize=10, markerfacecolor="none", markeredgecolor="black")
    square = Line2D([], [], linestyle="", marker="s", markersize=10, markerfacecolor="none", markeredgecolor=CELL)
    axis.legend([ring, square], ["the place", f"its coarsest cell\n({size} mm)"], loc="center left", fontsize=7.5,
                frameon=False, borderpad=0, handletextpad=0.2)  # fmt: skip


def _draw_components(axis: Axes, found: Similarity, label: str) -> None:
    order = np.argsort(-found.distances[:_DOTS])  # near ones on top
    # bright is near, as in the heat map
    x, y = found.components[order].T
    points = axis.scatter(x, y, c=found.distances[order], cmap=f"{HEAT}_r", s=7, linewidths=0)
    axis.plot(*found.reference_components, "*", markersize=15, color=_ORANGE, markeredgecolor="black",
              label="reference")  # fmt: skip
    assert axis.figure is not None
    axis.figure.colorbar(points, ax=axis, label=label)
    axis.set_xlabel(f"component 1 ({found.explained[0]:.0%} of the variance)")
    axis.set_ylabel(f"component 2 ({found.explained[1]:.0%})")
    axis.set_title("Principal components of the body's features", fontsize=10.5)
    axis.legend(loc="best", fontsize=9)


def _draw_profile(axis: Axes, found: Similarity, label: str) -> None:
    axis.scatter(found.distances[:_DOTS], found.similarities[:_DOTS], s=4, color="0.6", linewidths=0,
                 label="a voxel of the body")  # fmt: skip
    edges, means, _ = zip(*mean_by_distance(found.distances, found.similarities), strict=True)
    width = edges[0] if len(edges) == 1 else min(np.diff(edges))
    axis.plot(np.subtract(edges, width / 2), means, "o-", color=_ORANGE, markersize=4, label=f"mean of {width:.0f} mm")
    axis.set_xlabel(label)
    axis.set_ylabel("cosine similarity")
    axis.set_title("Similarity against distance", fontsize=10.5)
    axis.grid(alpha=0.3)
    axis.legend(loc="best", fontsize=9)
