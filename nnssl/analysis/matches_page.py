"""The picture of landmarks and their matches: a column for each landmark, a row for each image."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnssl.analysis.planes import Plane, Scale, page, save_page, show_grey, turn_axes
from nnssl.analysis.points import Landmarks, format_mm, format_voxel
from nnssl.core.figures import BRIGHT, COLOURS, WIDTH, halo, point_from_frame, write_inside
from nnssl.core.names import picture
from nnssl.features.geometry import Floats
from nnssl.features.images import PreparedImage, grey_window

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_SHOWN = 5  # landmarks in a picture, at most: more columns hold no title
_BESIDE = 2  # landmarks whose clean slices have room beside the marked ones
_CHARACTERS = 12  # of a title to an inch
_HIGHEST = 3.2  # inches of a slice


@dataclass(frozen=True)
class Found:
    """Landmarks found in an image.

    Args:
        image: the searched one.
        points: (N, 3) voxels of its grid.
        truth: (N, 3) places by its labels; NaN where unknown.
        errors: (N,) mm between both.
        similarity: (N,) mean cosine of the features, -1 to 1.
        back: (N,) mm between the landmark and where the match lands when searched in the first image.
    """

    image: PreparedImage
    points: Floats
    truth: Floats
    errors: Floats
    similarity: Floats
    back: Floats


def draw_matches(
    asked: PreparedImage, landmarks: Landmarks, found: Sequence[Found], features: str, file: Path, ras: bool = False
) -> None:
    """Write the PNG: axial slices through the first landmarks, and in each searched image through their matches.

    Every slice comes twice, marked and clean. A ring marks the landmark or its match, a cross the place by the labels,
    projected where it is in another slice; lines beside the frame of the clean slice point to the ring.

    Args:
        asked: image with the landmarks.
        landmarks: of it.
        found: in the other images.
        features: for the title.
        file: to write.
        ras: millimetres are RAS instead of LPS.
    """
    images = [asked, *(match.image for match in found)]
    number = min(_SHOWN, len(landmarks.names))
    beside = number <= _BESIDE  # the clean slice, else below
    columns, rows = (2 * number, len(images)) if beside else (number, 2 * len(images))
    width = WIDTH / columns - 0.2
    above = 0.8 if beside else 0.55  # inches of titles
    own = [min(width * _height_over_width(image), _HIGHEST) + above for image in images]
    heights = np.repeat(own, rows // len(images)).tolist()
    figure = page(
        sum(heights) + 0.9,
        f"Landmarks of {asked.name} found in other images ({features})\n"
        f"x y z in mm ({'RAS' if ras else 'LPS'}) and in voxels of the file; axial slices",
    )
    axes = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
    for row, image in enumerate(images):
        for n, colour in zip(range(number), BRIGHT, strict=False):
            pair: Any = axes[row, 2 * n : 2 * n + 2] if beside else axes[2 * row : 2 * row + 2, n]
            if row == 0:
                _draw_asked(pair, image, fit_title(landmarks.names[n], width), landmarks.points[n], colour, ras)
            else:
                _draw_found(pair, found[row - 1], n, colour, ras)
        axes[row if beside else 2 * row][0].set_ylabel(picture(image.name), fontsize=9.5)
    _legend(figure, bool(np.isfinite([match.errors for match in found]).any()))
    save_page(figure, file)


def _title(axis: Axes, *lines: str) -> None:
    axis.set_title("\n".join(lines), fontsize=8.5)


def _mm(image: PreparedImage, at: Floats, ras: bool) -> str:
    """A place in mm, without the convention."""
    return format_mm(image, at, ras).split(")")[0].strip("(").replace(",", "")


def _voxel(image: PreparedImage, at: Floats) -> str:
    return format_voxel(image, at).strip("()").replace(",", "")


def fit_title(name: str, width: float) -> str:
    """The name of a landmark, in lines that fit a column `width` inches wide."""
    return textwrap.fill(name.replace("_", " "), int(width * _CHARACTERS))


def _height_over_width(image: PreparedImage) -> float:
    size, spacing = image.values.shape[1:], image.geometry.spacing
    plane = Scale.of(image, np.zeros(3)).planes(np.zeros(3), size)[0]
    return float(size[plane.rows] * spacing[plane.rows] / (size[plane.columns] * spacing[plane.columns]))


def _slices(pair: Sequence[Axes], image: PreparedImage, at: Floats, colour: str) -> tuple[Scale, Plane]:
    """The axial slice through a point, with a ring around it and clean."""
    scale, grey = Scale.of(image, at), image.values[0]
    plane = scale.planes(at, grey.shape)[0]
    place = scale.place(plane, at)
    for axis in pair:
        show_grey(axis, scale, plane, grey, grey_window(grey))
        turn_axes(axis, scale, plane, grey.shape)
        write_inside(axis, f"slice {plane.of_file}", 0.02, 0.98, 8.5)
    _mark(pair[0], place, "o", 12, colour)
    point_from_frame(pair[1], *place)
    return scale, plane


def _mark(axis: Axes, place: tuple[float, float], marker: str, size: float, colour: str) -> None:
    axis.plot(*place, marker, markersize=size, markerfacecolor="none", markeredgecolor=colour, markeredgewidth=1.6,
              path_effects=halo(3.2))  # fmt: skip


def _draw_asked(pair: Sequence[Axes], image: PreparedImage, name: str, at: Floats, colour: str, ras: bool) -> None:
    _slices(pair, image, at, colour)
    _title(pair[0], picture(name), f"at {_mm(image, at, ras)}")
    _title(pair[1], f"voxel {_voxel(image, at)}")


def _draw_found(pair: Sequence[Axes], match: Found, number: int, colour: str, ras: bool) -> None:
    image, at, truth = match.image, match.points[number], match.truth[number]
    scale, plane = _slices(pair, image, at, colour)
    said, voxels = [f"similarity {match.similarity[number]:.2f}"], [f"found voxel {_voxel(image, at)}"]
    places = [f"found {_mm(image, at, ras)}"]
    if np.isfinite(truth).all():
        _mark(pair[0], scale.place(plane, truth), "x", 5.5, "white")
        said = [f"error {match.errors[number]:.1f} mm", *said]
        places.append(f"truth {_mm(image, truth, ras)}")
        voxels.append(f"truth voxel {_voxel(image, truth)}")
    _title(pair[0], *said, *places)
    _title(pair[1], *voxels)


def _legend(figure: Figure, with_truth: bool) -> None:
    from matplotlib.lines import Line2D as Line

    def mark(marker: str, size: float, colour: str = "black") -> Line2D:
        return Line([], [], linestyle="", marker=marker, markersize=size, markerfacecolor="none",
                      markeredgecolor=colour, markeredgewidth=1.6)  # fmt: skip

    marks, texts = [mark("o", 9)], ["landmark (first row), and its match"]
    if with_truth:
        marks.append(mark("x", 8))
        texts.append("place by the labels, projected onto the slice")
    marks.append(mark("|", 8, COLOURS[1]))
    texts.append("where the ring is")
    figure.legend(marks, texts, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
