"""`views.png` and `reconstruction.png`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nnssl.core.figures import BRIGHT, WIDTH, draw_scale_bar, halo, new_figure, save_figure, write_inside
from nnssl.core.labels import Label, write_labels
from nnssl.core.names import picture
from nnssl.core.system import dispensable
from nnssl.methods.base import Batch, Method
from nnssl.methods.panel import Panel
from nnssl.pretraining.overviews import Outline, Overview, overviews
from nnssl.pretraining.setup import Setup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OVERVIEW, _HIGHEST = 2.6, 3.2  # inches of a row of overviews, and of pictures at most
_CHARACTERS = 13  # of a title to an inch
_FEW = 4  # outlines with colours and numbers
_THIN = 0.8  # points of a line
_NOTHING = "0.3"  # grey beyond a volume

# what is written into an axis once the layout is final
Labelled = tuple["Axes", list[Label]]


def draw_panels(rows: list[list[Panel]], file: Path, title: str, where: Sequence[Overview] = ()) -> None:
    """Rows of pictures with numbered points and boxes, as one PNG; above them where the crops are in the body."""
    title = "\n".join(textwrap.fill(line, int(0.85 * _CHARACTERS * WIDTH)) for line in title.split("\n"))
    columns = max(len(row) for row in rows)
    width = WIDTH / max(columns, 2)
    heights = [_OVERVIEW + 0.3] * bool(where) + [(min(width, _HIGHEST) + 0.35) * len(rows)]
    figure = new_figure(WIDTH, sum(heights) + 0.3 + 0.25 * title.count("\n"))
    figure.suptitle(picture(title), fontsize=11)
    parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    labelled: list[Labelled] = []
    if where:
        axes = parts[0].subplots(1, max(len(where), 2), squeeze=False)[0]
        labelled += [_draw_overview(axis, shown, WIDTH / len(axes)) for axis, shown in zip(axes, where, strict=False)]
        _hide(axes[len(where) :])
        _explain(parts[0], where, points=any(panel.points for row in rows for panel in row))
    for line, row in zip(parts[-1].subplots(len(rows), max(columns, 2), squeeze=False), rows, strict=True):
        labelled += [_draw_panel(axis, panel, width, bool(where)) for axis, panel in zip(line, row, strict=False)]
        _hide(line[len(row) :])
    _write(figure, labelled)
    save_figure(figure, file, small=True)


def _write(figure: Figure, labelled: Sequence[Labelled]) -> None:
    """Write the labels of all axes, which do not move any more."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axis, labels in labelled:
        write_labels(axis, labels)


def _hide(axes: Sequence[Axes]) -> None:
    for axis in axes:
        axis.set_axis_off()


def _show(axis: Axes, image: Any, values: tuple[float, float] | None, aspect: float, title: str, width: float) -> None:
    """Draw an image `width` inches wide, without ticks and frame."""
    low, high = values or (float(image.min()), float(image.max()))
    axis.imshow(image, cmap="gray", vmin=low, vmax=high, aspect=aspect, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_visible(False)
    lines = (textwrap.fill(line, int(_CHARACTERS * width)) for line in title.split("\n"))
    axis.set_title(picture("\n".join(lines)), fontsize=9.5)


def _draw_overview(axis: Axes, shown: Overview, width: float) -> Labelled:
    """Draw where crops are; their numbers are to be written at corners of their boxes."""
    _show(axis, shown.image, shown.values, shown.aspect, shown.title, width)
    # the lower side is left out: there is the scale
    for letter, column, row in zip(shown.sides, (0.02, 0.98, 0.5), (0.5, 0.5, 0.98), strict=False):
        write_inside(axis, letter, column, row, 9.5)
    few, labels = len(shown.outlines) <= _FEW, []
    for place, outline in enumerate(shown.outlines):
        colour = BRIGHT[outline.number % len(BRIGHT)] if few else "white"
        _draw_outline(axis, outline, colour, 1.8 if few else _THIN / 2)
        row, column, height, along = outline.box
        if few and len(shown.outlines) > 1:
            corner = (column + along * (place % 2), row + height * (place % 2))
            labels.append(Label(str(outline.number + 1), *corner, colour, marked=False))
    left, right = _span([(o.box[1], o.box[1] + o.box[3]) for o in shown.outlines], shown.image.shape[1])
    top, bottom = _span([(o.box[0], o.box[0] + o.box[2]) for o in shown.outlines], shown.image.shape[0])
    axis.set_xlim(left - 0.5, right - 0.5)
    axis.set_ylim(bottom - 0.5, top - 0.5)
    axis.set_facecolor(_NOTHING)
    if shown.width_mm is not None:
        draw_scale_bar(axis, shown.width_mm * (right - left) / shown.image.shape[1])
    return axis, labels


def _span(boxes: Sequence[tuple[float, float]], size: int) -> tuple[float, float]:
    """First and last edge of an image along an axis and of the boxes, which may be larger."""
    return min(0.0, *(first for first, _ in boxes)), max(float(size), *(last for _, last in boxes))


def _draw_outline(axis: Axes, outline: Outline, colour: str, line: float) -> None:
    """A box, dashed where the slice does not cut the crop, and the slices of the pictures below."""
    _draw_box(axis, outline.box, colour, line, "-" if outline.cut else (0, (4, 2)))
    for first_row, first, last_row, last in outline.slices:
        axis.plot([first - 0.5, last - 0.5], [first_row - 0.5, last_row - 0.5], color=colour, linewidth=1.2,
                  linestyle=":", path_effects=halo(2.4))  # fmt: skip


def _draw_box(axis: Axes, box: Sequence[float], colour: str, line: float, style: Any = "-") -> None:
    from matplotlib.patches import Rectangle

    row, column, height, along = box
    axis.add_patch(Rectangle((column - 0.5, row - 0.5), along, height, fill=False, edgecolor=colour, linewidth=line,
                             linestyle=style, path_effects=halo(line + 1.4)))  # fmt: skip


def _explain(part: Any, where: Sequence[Overview], points: bool) -> None:
    """A legend of the lines that the overviews have, and of the rings that the pictures below have."""
    from matplotlib.lines import Line2D

    outlines = [outline for shown in where for outline in shown.outlines]
    kinds: list[tuple[dict[str, Any], str, bool]] = [
        ({"linestyle": "-"}, "crop", True),
        ({"linestyle": (0, (4, 2))}, "crop in front of this slice or behind it", not all(o.cut for o in outlines)),
        ({"linestyle": ":"}, "slice shown below", any(o.slices for o in outlines)),
        ({"linestyle": "", "marker": "o", "markerfacecolor": "none"}, "same number, same place", points),
    ]
    marks = [(Line2D([], [], color="black", **look), text) for look, text, there in kinds if there]
    part.legend(*zip(*marks, strict=True), loc="outside lower center", ncols=len(marks), fontsize=9, frameon=False)


def _draw_panel(axis: Axes, panel: Panel, width: float, framed: bool) -> Labelled:
    """Draw a picture `width` inches wide; the numbers of its points are to be written.

    It is framed in the colour of its crop, if there are overviews.
    """
    _show(axis, panel.image, panel.values, panel.aspect, panel.title, width)
    labels = [Label(str(number), column, row, _colour(number - 1)) for number, row, column in panel.points]
    for label in labels:
        axis.plot(label.column, label.row, "o", markersize=7, markerfacecolor="none", markeredgecolor=label.colour,
                  markeredgewidth=1.6, path_effects=halo(3.0), clip_on=False)  # fmt: skip
    for box in panel.frames:
        _draw_box(axis, box, "white", _THIN)
    for number, box in enumerate(panel.boxes):
        _draw_box(axis, box, _colour(number if panel.crop is None else panel.crop[1]), 1.8)
    for text, row, column in panel.texts:
        axis.text(column, row, text, color="white", fontsize=9.5, ha="center", va="center", path_effects=halo())
    colour = panel.crop[1] if panel.crop is not None and framed else panel.colour
    for side in axis.spines.values():
        side.set(visible=colour is not None, color=_colour(colour or 0), linewidth=2.5)
    return axis, labels


def _colour(number: int) -> str:
    return BRIGHT[number % len(BRIGHT)]


def draw_views(setup: Setup, method: Method, views: Batch, cases: Sequence[str]) -> None:
    """Draw an augmented batch of the cases."""
    batch, kind = {k: v.cpu() for k, v in views.items()}, type(method)
    panels = kind.panels(batch, setup.config)
    with dispensable("views.png"):
        where = overviews(setup, kind, batch, cases, panels)
        _draw(setup, panels, "views", "views of the first step", cases, where)


@torch.no_grad()
def draw_reconstruction(setup: Setup, method: Method, views: Batch, cases: Sequence[str], epoch: int) -> None:
    """Draw what the network makes of an augmented batch after an epoch, if the method shows it; mode as it was."""
    training = method.training
    method.eval()
    panels = method.reconstruction(views)
    method.train(training)
    if panels:
        with dispensable("reconstruction.png"):
            _draw(setup, panels, "reconstruction", f"after epoch {epoch}", cases)


def _draw(
    setup: Setup,
    panels: list[list[Panel]],
    name: str,
    heading: str,
    cases: Sequence[str],
    where: Sequence[Overview] = (),
) -> None:
    draw_panels(
        panels, setup.folder / f"{name}.png", f"{setup.method}: {heading}\n{name_cases(cases, len(panels))}", where
    )


def name_cases(cases: Sequence[str], most: int) -> str:
    """The first cases, with the dataset once where all are of one."""
    shown = list(dict.fromkeys(cases[:most]))
    datasets = {case.split("/")[0] for case in shown}
    if len(datasets) > 1 or not all("/" in case for case in shown):
        return ", ".join(shown)
    return f"{datasets.pop()}: " + ", ".join(case.split("/", 1)[1] for case in shown)
