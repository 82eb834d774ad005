"""What all figures are drawn on: a page of fixed width, and three planes of an image with something over it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnssl.analysis.match_picture import Plane, Scale, grey_window, mark_point, plane_widths, show_grey, turn_axes
from nnssl.core.errors import UserError
from nnssl.core.files import write_json
from nnssl.core.names import picture
from nnssl.features.images import PreparedImage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.image import AxesImage

HEAT = "viridis"  # in order of brightness for every kind of colour vision
CELL = "#E69F00"  # outlines of cells
WIDTH = 10.5  # inches
_DPI = 105  # a page is 1,100 pixels wide
_OPACITY = 0.7
_BESIDE = 0.13  # of the width of the planes: legend or colour bar


@dataclass(frozen=True)
class Overlay:
    """Something that lies over an image.

    Args:
        cells: (Z, Y, X) values, or (3, Z, Y, X) uint8 red, green and blue.
        shown: (Z, Y, X) bool; the image is bare elsewhere.
        stride: (z, y, x) voxels a cell.
        ends: values that are darkest and brightest.
        colours: of matplotlib, for values.
        opacity: 0 to 1.
    """

    cells: NDArray[Any]
    shown: NDArray[np.bool_]
    stride: Sequence[int]
    ends: tuple[float, float] = (0.0, 1.0)
    colours: str = HEAT
    opacity: float = _OPACITY

    def draw(self, axis: Axes, scale: Scale, plane: Plane) -> AxesImage:
        """Draw the slice of it."""
        extent = scale.extent(plane, self.shown.shape, self.stride)
        opacity = plane.cut(self.shown, self.stride) * self.opacity
        if self.cells.ndim == 4:
            colours = [plane.cut(channel, self.stride) / 255 for channel in self.cells]
            return axis.imshow(np.stack([*colours, opacity], axis=-1), extent=extent, interpolation="nearest")
        return axis.imshow(plane.cut(self.cells, self.stride), self.colours, vmin=self.ends[0], vmax=self.ends[1],
                           alpha=opacity, extent=extent, interpolation="nearest")  # fmt: skip


def page(height: float, title: str) -> Figure:
    """An empty page of a README's width, so many inches high."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # no pyplot: it would hold global state and choose a display
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(picture(title), fontsize=12)
    return figure


def height_of_planes(image: PreparedImage, at: NDArray[np.float64]) -> float:
    """Inches that a row of the three planes takes on a page, with its labels."""
    size = image.values.shape[1:]
    tallest = max(size[p.rows] * image.geometry.spacing[p.rows] for p in Scale.of(image, at).planes(at, size))
    return float(np.clip((WIDTH - 2.6) * tallest / ((1 + _BESIDE) * sum(plane_widths(image, at))), 1.6, 6.0)) + 1.05


def parts_of(figure: Figure, heights: Sequence[float]) -> list[SubFigure]:
    """Parts of a page, one below the other."""
    parts: Any = figure.subfigures(len(heights), 1, height_ratios=list(heights))
    return list(parts)


def row_of_planes(
    part: SubFigure, image: PreparedImage, at: NDArray[np.float64], title: str
) -> tuple[list[Axes], Axes]:
    """Empty axes for the three planes of an image, all to one scale, and an empty one for what stands beside them."""
    part.suptitle(picture(title), fontsize=10.5)
    widths = plane_widths(image, at)
    *axes, beside = part.subplots(1, 4, width_ratios=[*widths, _BESIDE * sum(widths)])
    beside.set_axis_off()
    return axes, beside


def draw_bar(part: SubFigure, beside: Axes, drawn: AxesImage, label: str) -> None:
    """Draw a colour bar beside a row of planes."""
    bar = part.colorbar(drawn, cax=beside.inset_axes((0.0, 0.05, 0.2, 0.9)), label=label)
    bar.ax.tick_params(labelsize=8)


def draw_planes(
    axes: Sequence[Axes], image: PreparedImage, at: NDArray[np.float64], overlay: Overlay | None = None,
    mark: bool = True,
) -> AxesImage | None:  # fmt: skip
    """Draw the three planes of an image through a point (3,) of its grid, axial first.

    They are seen as radiologists do: the patient's left is on the right, the front and the head are up.
    """
    scale, grey = Scale.of(image, at), image.values[0]
    window, drawn = grey_window(grey), None
    for axis, plane in zip(axes, scale.planes(at, grey.shape), strict=True):
        show_grey(axis, scale, plane, grey, window)
        if overlay is not None:
            drawn = overlay.draw(axis, scale, plane)
        if mark:
            mark_point(axis, scale.place(plane, at))
        turn_axes(axis, scale, plane, grey.shape)
        axis.tick_params(labelsize=8)
    return drawn


def outline_cell(axes: Sequence[Axes], image: PreparedImage, at: NDArray[np.float64], stride: Sequence[int]) -> None:
    """Outline the cell of so many voxels that a point lies in, on planes that `draw_planes` drew through it."""
    from matplotlib.patches import Rectangle

    scale = Scale.of(image, at)
    low = np.floor((at + 0.5) / np.asarray(stride)) * np.asarray(stride) - 0.5
    for axis, plane in zip(axes, scale.planes(at, image.values.shape[1:]), strict=True):
        (x, y), (right, bottom) = scale.place(plane, low), scale.place(plane, low + np.asarray(stride))
        axis.add_patch(Rectangle((x, y), right - x, bottom - y, fill=False, edgecolor=CELL, linewidth=2))


def save_png(figure: Figure, file: Path) -> None:
    """Write the picture in one piece."""
    temporary = file.with_name(file.name + ".writing")
    figure.savefig(temporary, dpi=_DPI, format="png", pil_kwargs={"optimize": True})
    temporary.replace(file)


def check_output(output: str | Path, *endings: str) -> Path:
    """The picture's path.

    Args:
        output: as it was typed.
        endings: of the files that are written beside it, besides `.json`.

    Raises:
        UserError: it does not end in .png, its folder does not exist or cannot be written to, or a file that is there
            already, such as the image itself, would be overwritten by one of those beside the picture.
    """
    file = Path(output)
    folder = file.resolve().parent
    if file.suffix != ".png":
        raise UserError(f"-o {file} has to end in .png; the numbers are written beside it, with other endings")
    if not folder.is_dir():
        raise UserError(f"the folder {folder} of -o does not exist; make it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"the folder {folder} of -o cannot be written to; choose another one")
    if file.is_dir():
        raise UserError(f"-o {file} is a folder; give the name of a picture")
    if not file.exists():  # else they are its own, of an earlier call
        for beside in (file.with_suffix(ending) for ending in (".json", *endings)):
            if beside.exists():
                raise UserError(f"{beside} exists and would be overwritten; give another name as -o")
    return file


def save_numbers(content: dict[str, Any], picture: Path) -> None:
    """Write a figure's numbers as JSON beside it; what is not a number becomes null."""
    write_json(picture.with_suffix(".json"), _plain(content))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return round(float(value), 5) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
