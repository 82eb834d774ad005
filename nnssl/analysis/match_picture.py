"""The picture of a match: the point in the query image, and similarity and best point in the key image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from nnssl.core import names as escape
from nnssl.features.images import PreparedImage

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PLANES = {2: "axial", 1: "coronal", 0: "sagittal"}  # by the world axis that a plane is at right angles to, as shown
_NAMES = "xyz"
_AXES = ("x (mm), to the left", "y (mm), to the back", "z (mm), upwards")
_HEAT = "viridis"  # in order of brightness for every kind of colour vision
_VISIBLE = 0.55  # opacity of the similarity over the image
_GREY = (1.0, 99.5)  # percentiles that are black and white


@dataclass(frozen=True)
class Plane:
    """A slice of an image: array axes at right angles to it, downwards and to the right, and the slice's number."""

    normal: int
    rows: int
    columns: int
    number: int
    title: str

    def cut(self, volume: NDArray[Any], stride: Sequence[int] = (1, 1, 1)) -> NDArray[Any]:
        """The slice (rows, columns) of a volume with cells of so many voxels."""
        plane = volume.take(min(self.number // stride[self.normal], volume.shape[self.normal] - 1), self.normal)
        return plane if self.rows < self.columns else plane.T


@dataclass(frozen=True)
class Scale:
    """World coordinates along the array axes of an image, on the lines through a point of it.

    They are exact for images whose axes are those of the body; in an oblique image they are millimetres along its axes.
    """

    of_axis: tuple[int, ...]  # world axis that each array axis runs along
    step: NDArray[np.float64]  # mm a voxel, negative where the world's axis runs the other way
    origin: NDArray[np.float64]  # of voxel 0

    @classmethod
    def of(cls, image: PreparedImage, point: NDArray[np.float64]) -> Scale:
        """The scale of an image around a point (3,) of its grid."""
        directions = image.geometry.affine[:3, :3] / image.geometry.spacing
        chosen = max(permutations(range(3)), key=lambda order: np.abs(directions[list(order), range(3)]).sum())
        step = image.geometry.spacing * np.where(directions[list(chosen), range(3)] < 0, -1.0, 1.0)
        return cls(chosen, step, image.geometry.grid_to_world(point)[list(chosen)] - step * point)

    def planes(self, point: NDArray[np.float64], size: Sequence[int]) -> list[Plane]:
        """The three slices through a point, axial first."""
        planes = []
        for world, title in _PLANES.items():
            normal = self.of_axis.index(world)
            columns, rows = (self.of_axis.index(other) for other in range(3) if other != world)
            number = int(np.clip(np.floor(point[normal] + 0.5), 0, size[normal] - 1))
            planes.append(Plane(normal, rows, columns, number, title))
        return planes

    def extent(self, plane: Plane, cells: Sequence[int], stride: Sequence[int]) -> tuple[float, float, float, float]:
        """Left, right, bottom and top of a slice of cells, in mm, for `imshow` with its first row at the top."""
        (left, right), (top, bottom) = (
            (self.origin[a] + self.step[a] * np.array([0, cells[a] * stride[a]]) - 0.5 * self.step[a]).tolist()
            for a in (plane.columns, plane.rows)
        )
        return left, right, bottom, top

    def place(self, plane: Plane, point: NDArray[np.float64]) -> tuple[float, float]:
        """Column and row of a point, in mm."""
        column, row = (float(self.origin[a] + self.step[a] * point[a]) for a in (plane.columns, plane.rows))
        return column, row


def draw_match(
    query: PreparedImage,
    key: PreparedImage,
    point: ArrayLike,
    best: ArrayLike,
    similarity: NDArray[np.float32],
    stride: Sequence[int],
    file: Path,
) -> None:
    """Write a PNG: three planes of the query image through the point, and of the key image through the best one.

    The similarity lies over the key image. Axes are in mm of the world (LPS), seen as radiologists do: the patient's
    left is on the right, the front and the head are up.

    Args:
        query: image that the point is in.
        key: image that was searched.
        point: (3,) voxels (z, y, x) of the query image's grid.
        best: (3,) voxels of the key image's grid.
        similarity: (Z, Y, X) of the cells of the key image.
        stride: voxels a cell.
        file: where to write it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13.5, 9.0), layout="constrained")
    FigureCanvasAgg(figure)
    widths = plane_widths(query, np.asarray(point, float))
    rows = figure.subplots(2, 3, squeeze=False, width_ratios=widths)
    heat = None
    for row, image, at in ((0, query, np.asarray(point, float)), (1, key, np.asarray(best, float))):
        scale = Scale.of(image, at)
        grey = image.values[0]
        window = grey_window(grey)
        for axis, plane in zip(rows[row], scale.planes(at, grey.shape), strict=True):
            show_grey(axis, scale, plane, grey, window)
            if image is key:
                heat = axis.imshow(plane.cut(similarity, stride), _HEAT, alpha=_VISIBLE, vmin=float(similarity.min()),
                                   vmax=float(similarity.max()), interpolation="nearest",
                                   extent=scale.extent(plane, similarity.shape, stride))  # fmt: skip
            mark_point(axis, scale.place(plane, at))
            turn_axes(axis, scale, plane, grey.shape)
    where = [format_mm(image.geometry.grid_to_world(at)) for image, at in ((query, point), (key, best))]
    rows[0][0].set_ylabel(f"query: {escape.picture(query.name)}\n{rows[0][0].get_ylabel()}")
    rows[1][0].set_ylabel(f"key: {escape.picture(key.name)}\n{rows[1][0].get_ylabel()}")
    assert heat is not None
    figure.colorbar(heat, ax=list(rows[1]), label="similarity (mean cosine)", shrink=0.9)
    title = (f"{query.name}: point at {where[0]} mm\n{key.name}: best match at {where[1]} mm, similarity "
             f"{similarity.max():.3f}")  # fmt: skip
    figure.suptitle(escape.picture(title))
    temporary = file.with_name(file.name + ".writing")
    figure.savefig(temporary, dpi=110, format="png")
    temporary.replace(file)


def plane_widths(image: PreparedImage, point: NDArray[np.float64]) -> list[float]:
    """Widths of the three slices in mm, so that all are drawn to one scale where the heights allow it."""
    size = image.values.shape[1:]
    planes = Scale.of(image, point).planes(point, size)
    return [float(size[plane.columns] * image.geometry.spacing[plane.columns]) for plane in planes]


def grey_window(grey: NDArray[np.float32]) -> tuple[float, float]:
    """The values of a volume that are shown black and white."""
    black, white = np.percentile(grey[:: max(1, len(grey) // 32)], _GREY)
    return float(black), float(white)


def show_grey(axis: Axes, scale: Scale, plane: Plane, grey: NDArray[np.float32], window: tuple[float, float]) -> None:
    """Show a slice of a volume (Z, Y, X) in grey."""
    axis.imshow(plane.cut(grey), "gray", vmin=window[0], vmax=window[1], interpolation="nearest",
                extent=scale.extent(plane, grey.shape, (1, 1, 1)))  # fmt: skip


def mark_point(axis: Axes, place: tuple[float, float], colour: str = "white") -> None:
    """Mark a point (column, row) in mm with a ring and a cross."""
    from matplotlib.patheffects import withStroke

    column, row = place
    outlined = [withStroke(linewidth=4, foreground="black")]
    axis.plot(column, row, "o", markersize=12, markerfacecolor="none", markeredgecolor=colour, markeredgewidth=1.8,
              path_effects=outlined)  # fmt: skip
    axis.plot(column, row, "+", markersize=5, markeredgecolor=colour, markeredgewidth=1.2, path_effects=outlined)


def turn_axes(axis: Axes, scale: Scale, plane: Plane, size: Sequence[int]) -> None:
    """Turn the axes of a slice as radiologists see it, and say what they are."""
    left, right, bottom, top = scale.extent(plane, size, (1, 1, 1))
    upwards = scale.of_axis[plane.rows] == 2  # z grows upwards on the picture, y downwards
    axis.set_xlim(min(left, right), max(left, right))
    axis.set_ylim(*sorted((bottom, top), reverse=not upwards))
    axis.set_xlabel(_AXES[scale.of_axis[plane.columns]])
    axis.set_ylabel(_AXES[scale.of_axis[plane.rows]])
    across = scale.origin[plane.normal] + scale.step[plane.normal] * plane.number
    axis.set_title(f"{plane.title} at {_NAMES[scale.of_axis[plane.normal]]} = {across:.1f} mm", fontsize=10)


def format_mm(world: NDArray[np.float64]) -> str:
    """A point of the world as text."""
    return "({})".format(", ".join(f"{v:.1f}" for v in world))
