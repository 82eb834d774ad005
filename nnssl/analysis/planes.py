"""Three planes of an image through a point, with colours over them: what most figures consist of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnssl.core.figures import WIDTH, draw_scale_bar, halo, new_figure, point_from_frame, save_figure, write_inside
from nnssl.core.names import picture
from nnssl.features.images import PreparedImage, grey_window

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.image import AxesImage

HEAT = "viridis"  # in order of brightness for every kind of colour vision
CELL = "#E69F00"  # outlines of cells
_OPACITY = 0.7
_BESIDE = 0.13  # of the width of the planes: colour bar
_PLANES = {2: "axial", 1: "coronal", 0: "sagittal"}  # by the world axis across the plane, in the order of figures
_NAMES = "xyz"
_SIDES = ("RL", "AP", "IS")  # where the world's axes come from and go to
_OBLIQUE = 0.3  # cosine above which a side is named too


@dataclass(frozen=True)
class Plane:
    """A slice of an image: the array axes across it, downwards and to the right, and its number.

    `of_file` is its number in the image's file, which differs after nnU-Net's crop and resampling.
    """

    normal: int
    rows: int
    columns: int
    number: int
    title: str
    of_file: int

    def cut(self, volume: NDArray[Any], stride: Sequence[int] = (1, 1, 1)) -> NDArray[Any]:
        """The slice (rows, columns) of a volume whose cells have `stride` voxels."""
        plane = volume.take(min(self.number // stride[self.normal], volume.shape[self.normal] - 1), self.normal)
        return plane if self.rows < self.columns else plane.T


@dataclass(frozen=True)
class Scale:
    """World coordinates along the array axes of an image, on the lines through one of its points.

    They are exact for images along the body's axes; in an oblique image they are millimetres along its own axes.
    """

    of_axis: tuple[int, ...]  # world axis of each array axis
    step: NDArray[np.float64]  # mm a voxel, negative against the world's axis
    origin: NDArray[np.float64]  # of voxel 0
    directions: NDArray[np.float64]  # (3, 3) cosines, a column for each array axis
    to_file: NDArray[np.float64]  # (4, 4) from voxels of the grid to those of the file

    @classmethod
    def of(cls, image: PreparedImage, point: NDArray[np.float64]) -> Scale:
        """The scale of an image around a point (3,) of its grid."""
        affine, spacing = image.geometry.affine, image.geometry.spacing
        directions = affine[:3, :3] / spacing
        chosen = max(permutations(range(3)), key=lambda order: np.abs(directions[list(order), range(3)]).sum())
        step = spacing * np.where(directions[list(chosen), range(3)] < 0, -1.0, 1.0)
        world = affine[:3, :3] @ point + affine[:3, 3]
        to_file = np.linalg.inv(image.geometry.file_affine) @ affine
        return cls(chosen, step, world[list(chosen)] - step * point, directions, to_file)

    def planes(self, point: NDArray[np.float64], size: Sequence[int]) -> list[Plane]:
        """The three slices through a point, axial first."""
        planes = []
        for world, title in _PLANES.items():
            normal = self.of_axis.index(world)
            columns, rows = (self.of_axis.index(other) for other in range(3) if other != world)
            number = int(np.clip(np.floor(point[normal] + 0.5), 0, size[normal] - 1))
            at = np.append(np.where(np.arange(3) == normal, number, point), 1.0)
            of_file = (self.to_file @ at)[np.abs(self.to_file[:3, normal]).argmax()]
            planes.append(Plane(normal, rows, columns, number, title, int(np.floor(of_file + 0.5))))
        return planes

    def sides(self, axis: int) -> tuple[str, str]:
        """Letters of the sides where the world's values along an array axis are small and large, such as R and L.

        The first letter is that of the nearest axis of the body; an oblique axis has two or three.
        """
        along = self.directions[:, axis] * np.sign(self.step[axis])
        order = sorted(np.flatnonzero(np.abs(along) > _OBLIQUE), key=lambda world: -abs(along[world]))
        large = "".join(_SIDES[world][int(along[world] > 0)] for world in order)
        small = "".join(_SIDES[world][int(along[world] < 0)] for world in order)
        return small, large

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


@dataclass(frozen=True)
class Overlay:
    """Colours over an image.

    Args:
        cells: (Z, Y, X) values, or (3, Z, Y, X) uint8 red, green and blue.
        stride: (z, y, x) voxels a cell.
        ends: values that are darkest and brightest.
        shown: (Z, Y, X) bool, the image is bare elsewhere; None for everywhere.
        colours: of matplotlib, for values.
        opacity: 0 to 1.
    """

    cells: NDArray[Any]
    stride: Sequence[int]
    ends: tuple[float, float] = (0.0, 1.0)
    shown: NDArray[np.bool_] | None = None
    colours: str = HEAT
    opacity: float = _OPACITY

    def draw(self, axis: Axes, scale: Scale, plane: Plane) -> AxesImage:
        """Draw its slice."""
        extent = scale.extent(plane, self.cells.shape[-3:], self.stride)
        opacity: Any = self.opacity
        if self.shown is not None:
            opacity = plane.cut(self.shown, self.stride) * self.opacity
        if self.cells.ndim == 4:
            colours = [plane.cut(channel, self.stride) / 255 for channel in self.cells]
            transparency = np.broadcast_to(opacity, colours[0].shape)
            return axis.imshow(np.stack([*colours, transparency], axis=-1), extent=extent, interpolation="nearest")
        return axis.imshow(plane.cut(self.cells, self.stride), self.colours, vmin=self.ends[0], vmax=self.ends[1],
                           alpha=opacity, extent=extent, interpolation="nearest")  # fmt: skip


def cells_in(body: NDArray[np.bool_], stride: tuple[int, ...], cells: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which cells (Z, Y, X), `stride` voxels large, have their centre in a mask of voxels."""
    places = [
        np.minimum(np.arange(count) * step + step // 2, size - 1)
        for count, step, size in zip(cells, stride, body.shape, strict=True)
    ]
    return np.asarray(body[np.ix_(*places)])


def page(height: float, title: str) -> Figure:
    """An empty page as wide as a README, `height` inches high."""
    figure = new_figure(WIDTH, height)
    figure.suptitle(picture(title), fontsize=11)
    return figure


def save_page(figure: Figure, file: Path) -> None:
    """Write a page as PNG, 900 pixels wide."""
    save_figure(figure, file, small=True)


@dataclass(frozen=True)
class Row:
    """The three planes of an image through a point, axial first, with the letters of the sides and a scale bar.

    The patient's left is on the right, the front and the head are up, as radiologists see them.

    Args:
        image: to draw in grey.
        at: (3,) voxels (z, y, x) of its grid.
        title: of the row.
        overlay: colours over it.
        mark: whether to mark the point; without, pointers at the frame show where it is.
        cell: (z, y, x) voxels of the cell to outline around the point; the title gives its size.
        bar: label of a colour bar beside the planes.
        ras: whether millimetres are RAS instead of LPS.
    """

    image: PreparedImage
    at: NDArray[np.float64]
    title: str
    overlay: Overlay | None = None
    mark: bool = True
    cell: Sequence[int] | None = None
    bar: str = ""
    ras: bool = False

    def draw(self, part: SubFigure, scale: Scale, planes: Sequence[Plane]) -> None:
        """Draw the row, all its planes to one scale."""
        size_mm = "" if self.cell is None else _size_of_cell(np.asarray(self.cell) * np.abs(scale.step))
        part.suptitle(f"{picture(self.title)}{size_mm}", fontsize=10.5)
        grey, drawn = self.image.values[0], None
        window, size = grey_window(grey), grey.shape
        widths = [size[plane.columns] * abs(scale.step[plane.columns]) for plane in planes]
        *axes, beside = part.subplots(1, 4, width_ratios=[*widths, _BESIDE * sum(widths)])
        beside.set_axis_off()
        for axis, plane in zip(axes, planes, strict=True):
            show_grey(axis, scale, plane, grey, window)
            if self.overlay is not None:
                drawn = self.overlay.draw(axis, scale, plane)
            if self.mark:
                mark_point(axis, scale.place(plane, self.at))
            turn_axes(axis, scale, plane, size, self.ras)
            if not self.mark:
                point_from_frame(axis, *scale.place(plane, self.at))
            if self.cell is not None:
                outline_cell(axis, scale, plane, self.at, self.cell)
        if self.bar and drawn is not None:
            bar = part.colorbar(drawn, cax=beside.inset_axes((0.0, 0.05, 0.2, 0.9)), label=self.bar)
            bar.ax.tick_params(labelsize=8)


def draw_rows(
    file: Path, title: str, rows: Sequence[Row], plots: Callable[[SubFigure], None] | None = None, height: float = 0.0
) -> None:
    """Write a page of rows as PNG.

    Args:
        file: to write.
        title: of the page.
        rows: from the top.
        plots: draws what comes below them.
        height: of that, in inches.
    """
    drawn = []
    for row in rows:
        size, scale = row.image.values.shape[1:], Scale.of(row.image, row.at)
        drawn.append((row, scale, scale.planes(row.at, size)))
    heights = [_height(scale, planes, row.image.values.shape[1:]) for row, scale, planes in drawn]
    heights += [height] if plots is not None else []
    figure = page(sum(heights) + 0.5, title)
    parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, (row, scale, planes) in zip(parts, drawn, strict=False):
        row.draw(part, scale, planes)
    if plots is not None:
        plots(parts[-1])
    save_page(figure, file)


def _height(scale: Scale, planes: Sequence[Plane], size: Sequence[int]) -> float:
    """Height of a row of the three planes on a page, in inches, with its labels."""
    mm = size * np.abs(scale.step)
    tallest, widths = max(mm[plane.rows] for plane in planes), sum(mm[plane.columns] for plane in planes)
    return float(np.clip((WIDTH - 0.9) * tallest / ((1 + _BESIDE) * widths), 1.6, 6.0)) + 1.0


def outline_cell(axis: Axes, scale: Scale, plane: Plane, at: NDArray[np.float64], stride: Sequence[int]) -> None:
    """Outline the cell around a point, `stride` voxels large."""
    from matplotlib.patches import Rectangle

    low = np.floor((at + 0.5) / np.asarray(stride)) * np.asarray(stride) - 0.5
    (x, y), (right, bottom) = scale.place(plane, low), scale.place(plane, low + np.asarray(stride))
    axis.add_patch(Rectangle((x, y), right - x, bottom - y, fill=False, edgecolor=CELL, linewidth=2))


def _size_of_cell(cell_mm: NDArray[np.float64]) -> str:
    return "\nsquare: its coarsest cell, {} mm".format(" x ".join(f"{mm:.0f}" for mm in cell_mm[::-1]))


def show_grey(axis: Axes, scale: Scale, plane: Plane, grey: NDArray[np.float32], window: tuple[float, float]) -> None:
    """Show a slice of a volume (Z, Y, X) in grey."""
    axis.imshow(plane.cut(grey), "gray", vmin=window[0], vmax=window[1], interpolation="nearest",
                extent=scale.extent(plane, grey.shape, (1, 1, 1)))  # fmt: skip


def mark_point(axis: Axes, place: tuple[float, float], colour: str = "white") -> None:
    """Mark a point (column, row) in mm with a ring and a cross."""
    column, row = place
    axis.plot(column, row, "o", markersize=12, markerfacecolor="none", markeredgecolor=colour, markeredgewidth=1.8,
              path_effects=halo(4))  # fmt: skip
    axis.plot(column, row, "+", markersize=5, markeredgecolor=colour, markeredgewidth=1.2, path_effects=halo(4))


def turn_axes(axis: Axes, scale: Scale, plane: Plane, size: Sequence[int], ras: bool = False) -> None:
    """Turn a slice as radiologists see it, with the letters of its sides and a scale bar; mm are LPS or RAS."""
    left, right, bottom, top = scale.extent(plane, size, (1, 1, 1))
    upwards = scale.of_axis[plane.rows] == 2  # z grows upwards on the picture, y downwards
    axis.set_xlim(min(left, right), max(left, right))
    axis.set_ylim(*sorted((bottom, top), reverse=not upwards))
    axis.set_xticks([])
    axis.set_yticks([])
    rows = scale.sides(plane.rows)
    beside, above = scale.sides(plane.columns), rows if upwards else rows[::-1]
    for text, column, row in zip((*beside, *above), (0.02, 0.98, 0.5, 0.5), (0.5, 0.5, 0.02, 0.98), strict=True):
        write_inside(axis, text, column, row, 10.0)
    draw_scale_bar(axis, abs(right - left))
    across = scale.origin[plane.normal] + scale.step[plane.normal] * plane.number
    world = scale.of_axis[plane.normal]
    turned = -across if ras and world < 2 else across
    axis.set_title(f"{plane.title}, slice {plane.of_file}\n{_NAMES[world]} = {turned:.1f} mm", fontsize=9.5)
