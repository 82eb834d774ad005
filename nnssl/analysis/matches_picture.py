"""The picture of matched landmarks: a column each, a row for every image."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnssl.analysis.canvas import WIDTH, page, save_png
from nnssl.analysis.features import Floats
from nnssl.analysis.match_picture import Scale, grey_window, show_grey, turn_axes
from nnssl.analysis.matches import Found, Landmarks
from nnssl.core.names import picture
from nnssl.features.images import PreparedImage
from nnssl.pretraining.pictures import COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIGNS = 12  # of a title to an inch
_PALETTE = tuple(COLOURS[i] for i in (4, 5, 2, 3, 6, 1))  # those that stand out of grey


def draw_matches(
    asked: PreparedImage, landmarks: Landmarks, found: Sequence[Found], shown: Sequence[int], features: str, file: Path
) -> None:
    """Write the PNG: axial slices through the landmarks, and in each searched image through their matches.

    A ring is the landmark or its match; a cross is the place by the labels, and where that lies in another slice, the
    cross is its projection.

    Args:
        asked: image with the landmarks.
        landmarks: of it.
        found: in the other images.
        shown: numbers of the landmarks that get a column.
        features: what they are, for the title.
        file: where to write it.
    """
    images = [asked, *(match.image for match in found)]
    tallest = max(_height_over_width(image) for image in images)
    width = min(WIDTH / len(shown), 3.5)
    rows_of = len(images)
    figure = page(
        rows_of * (width * tallest * 0.8 + 0.45) + 1.2, f"Landmarks of {asked.name} found in other images ({features})"
    )
    axes = figure.subplots(rows_of, len(shown), squeeze=False)
    for column, number in enumerate(shown):
        colour = _PALETTE[column % len(_PALETTE)]
        _slice(axes[0][column], asked, landmarks.points[number])
        _ring(axes[0][column], asked, landmarks.points[number], landmarks.points[number], colour)
        axes[0][column].set_title(picture(fit_title(landmarks.names[number], width)), fontsize=9.5)
        for row, match in enumerate(found, start=1):
            _draw_found(axes[row][column], match, number, colour)
    for row, image in enumerate(images):
        for axis in axes[row][1:]:
            axis.set_ylabel("")
        axes[row][0].set_ylabel(f"{picture(image.name)}\n{axes[row][0].get_ylabel()}", fontsize=9)
        for axis in axes[row]:
            axis.tick_params(labelsize=7)
            axis.set_xlabel(axis.get_xlabel() if row == rows_of - 1 else "", fontsize=8.5)
    _legend(figure, bool(np.isfinite([match.errors for match in found]).any()))
    save_png(figure, file)


def fit_title(name: str, width: float) -> str:
    """The name of a landmark in lines that are no longer than a column of so many inches."""
    return textwrap.fill(name.replace("_", " "), int(width * _SIGNS))


def _height_over_width(image: PreparedImage) -> float:
    size, spacing = image.values.shape[1:], image.geometry.spacing
    plane = Scale.of(image, np.zeros(3)).planes(np.zeros(3), size)[0]
    return float(size[plane.rows] * spacing[plane.rows] / (size[plane.columns] * spacing[plane.columns]))


def _slice(axis: Axes, image: PreparedImage, at: Floats) -> None:
    scale, grey = Scale.of(image, at), image.values[0]
    plane = scale.planes(at, grey.shape)[0]
    show_grey(axis, scale, plane, grey, grey_window(grey))
    turn_axes(axis, scale, plane, grey.shape)


def _ring(axis: Axes, image: PreparedImage, at: Floats, point: Floats, colour: str, cross: bool = False) -> None:
    """Mark a point on the axial slice through another one."""
    from matplotlib.patheffects import withStroke

    scale = Scale.of(image, at)
    place = scale.place(scale.planes(at, image.values.shape[1:])[0], point)
    outlined = [withStroke(linewidth=3.2, foreground="black")]
    axis.plot(*place, "x" if cross else "o", markersize=5.5 if cross else 12, markerfacecolor="none",
              markeredgecolor="white" if cross else colour, markeredgewidth=1.6, path_effects=outlined)  # fmt: skip


def _draw_found(axis: Axes, match: Found, number: int, colour: str) -> None:
    at = match.points[number]
    _slice(axis, match.image, at)
    _ring(axis, match.image, at, at, colour)
    if np.isfinite(match.truth[number]).all():
        _ring(axis, match.image, at, match.truth[number], colour, cross=True)
        said = f"error {match.errors[number]:.1f} mm"
    else:
        said = f"similarity {match.similarity[number]:.2f}"
    axis.set_title(said, fontsize=9.5)


def _legend(figure: object, with_truth: bool) -> None:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    assert isinstance(figure, Figure)
    ring = Line2D([], [], linestyle="", marker="o", markersize=9, markerfacecolor="none", markeredgecolor="black")
    cross = Line2D([], [], linestyle="", marker="x", markersize=8, markeredgecolor="black")
    marks, texts = [ring], ["landmark (first row), and its match; axial slices through them"]
    if with_truth:
        marks.append(cross)
        texts.append("place by the labels (projected onto the slice)")
    figure.legend(marks, texts, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
