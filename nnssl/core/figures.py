"""Pictures: made without a display, written in one piece, with their numbers beside them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nnssl.core.errors import UserError
from nnssl.core.files import replacing, write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours: told apart with every kind of colour vision
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#FFFFFF")
BRIGHT = tuple(COLOURS[i] for i in (4, 5, 2, 3, 6, 1))  # those that stand out of grey anatomy
WIDTH = 9.0  # inches of a page: 900 pixels, which a README shows as they are
_BAR = 0.25  # of the width of an image, at most: its scale bar


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # no pyplot: it would hold global state and choose a display
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def halo(width: float = 2.5) -> list[Any]:
    """Path effects: a black outline, so that a mark is seen on every grey."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=width, foreground="black")]


def write_inside(axis: Axes, text: str, column: float, row: float, size: float = 9.0, colour: str = "white") -> None:
    """Write into an image with a halo.

    Args:
        axis: with the image.
        text: to write.
        column: 0 to 1 of the frame, from the left; the text grows from there inwards.
        row: 0 to 1, from the bottom.
        size: of the letters, in points.
        colour: of the letters.
    """
    across = "left" if column < 0.5 else "right" if column > 0.5 else "center"
    along = "bottom" if row < 0.5 else "top" if row > 0.5 else "center"
    axis.text(column, row, text, transform=axis.transAxes, color=colour, fontsize=size, ha=across, va=along,
              path_effects=halo())  # fmt: skip


def point_from_frame(axis: Axes, column: float, row: float) -> None:
    """Point to a place of an image, in data coordinates, by short lines outside of its frame, which hide nothing."""
    axis.set_xticks([column], [""])
    axis.set_yticks([row], [""])
    axis.tick_params(length=6, width=2, color=COLOURS[1], bottom=True, left=True, right=True)


def round_length(most: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is at most `most`, which is above 0."""
    power = 10.0 ** np.floor(np.log10(most) + 1e-9)
    return float(power * max(step for step in (1, 2, 5) if step * power <= most * (1 + 1e-9)))


def draw_scale_bar(axis: Axes, width_mm: float, size: float = 8.0) -> None:
    """Draw a bar of a round length in the lower right corner of an image that is `width_mm` wide."""
    length = round_length(_BAR * width_mm)
    share, row = length / width_mm, 0.03
    axis.plot([0.97 - share, 0.97], [row, row], transform=axis.transAxes, color="white", linewidth=2.5,
              solid_capstyle="butt", path_effects=halo(4.0))  # fmt: skip
    write_inside(axis, f"{length:g} mm", 0.97, row + 0.02, size)


def save_figure(figure: Figure, file: Path, dpi: int = 100, small: bool = False) -> None:
    """Write a PNG in one piece; `small` takes longer and saves bytes."""
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=dpi, format="png", pil_kwargs={"optimize": small})


def check_output(output: str | Path, *endings: str) -> Path:
    """The path of a picture that can be written.

    Args:
        output: as typed.
        endings: of the files written beside it, besides `.json`.

    Raises:
        UserError: it does not end in .png, its folder does not exist or cannot be written to, or one of the files
            beside it would overwrite a file of another origin, such as the image itself.
    """
    file = Path(output)
    folder = file.resolve().parent
    if file.suffix != ".png":
        raise UserError(f"-o {file} must end in .png; the numbers are written beside it, with other endings")
    check_folder(file)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"the folder {folder} of -o cannot be written to; choose another one")
    if file.is_dir():
        raise UserError(f"-o {file} is a folder; give the name of a picture")
    if not file.exists():  # otherwise the files beside it are its own, of an earlier call
        for beside in (file.with_suffix(ending) for ending in (".json", *endings)):
            if beside.exists():
                raise UserError(f"{beside} exists and would be overwritten; give another name as -o")
    return file


def check_folder(file: Path) -> None:
    """Raise UserError where the folder of a picture does not exist."""
    folder = file.resolve().parent
    if not folder.is_dir():
        raise UserError(f"the folder {folder} of -o does not exist; make it first")


def save_numbers(content: dict[str, Any], picture: Path) -> None:
    """Write the numbers of a picture as JSON beside it; NaN and infinity become null."""
    write_json(picture.with_suffix(".json"), _plain(content))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return round(float(value), 5) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
