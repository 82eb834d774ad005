"""`progress.png` and `views.png`."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nnssl.core.figures import COLOURS, WIDTH, halo, new_figure, save_figure
from nnssl.core.names import picture
from nnssl.core.system import dispensable
from nnssl.methods.base import Batch, Method
from nnssl.methods.panel import Panel
from nnssl.pretraining.crops import overviews
from nnssl.pretraining.metrics import Row
from nnssl.pretraining.setup import Setup

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MARKED = 60  # epochs: more of them need no markers
_OVERVIEW, _HIGHEST = 2.4, 3.4  # inches of a row of overviews, and of pictures at most
_CHARACTERS = 13  # of a title to an inch

# `progress.png`: what an axis shows, and the keys of its lines with their names
_PROGRESS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("loss", (("loss", "training"), ("val_loss", "held-out cases"))),
    ("embedding deviation", (("embedding_std", "training"), ("val_embedding_std", "held-out cases"))),
    ("effective rank", (("effective_rank", ""),)),
    ("probe Dice", (("probe_linear_dice", "linear head"), ("probe_nonlinear_dice", "non-linear head"))),
    ("learning rate", (("learning_rate", ""),)),
    ("samples/s", (("samples_per_second", ""),)),
)


def draw_progress(rows: list[Row], file: Path, title: str) -> None:
    """Loss, embedding deviation and rank, the probe's Dice, learning rate and speed against the epochs, as one PNG."""
    panels = [(label, series) for label, series in _PROGRESS if any(key in row for row in rows for key, _ in series)]
    figure = new_figure(WIDTH, 1.9 * len(panels) + 0.8)
    axes = list(figure.subplots(len(panels), 1, squeeze=False, sharex=True).ravel())
    for axis, (label, series) in zip(axes, panels, strict=True):
        for colour, (key, name) in zip(COLOURS, series, strict=False):
            points = [(row["epoch"], row[key]) for row in rows if key in row]
            if points:
                axis.plot(*zip(*points, strict=True), color=colour, marker="o" if len(points) < _MARKED else "",
                          markersize=4, label=name)  # fmt: skip
        if label == "embedding deviation" and rows:
            axis.axhline(rows[-1]["embedding_dim"] ** -0.5, color="0.5", linestyle=":", label="spread evenly: 1/√d")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[1] and series[0][1]:
            axis.legend(loc="best", frameon=False)
        if label == "learning rate":
            axis.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
            axis.set_ylim(bottom=0)
    waiting = axes[-1].twinx()
    waiting.plot([r["epoch"] for r in rows], [100 * r["data_wait"] for r in rows], color=COLOURS[1], linestyle="--",
                 marker="o" if len(rows) < _MARKED else "", markersize=4)  # fmt: skip
    waiting.set_ylabel("data-wait in %", color=COLOURS[1])
    waiting.set_ylim(0, 100)
    axes[-1].set_ylim(0, 1.1 * max(row["samples_per_second"] for row in rows))
    axes[-1].set_xlabel("epoch")
    _tick_epochs(axes[0], [row["epoch"] for row in rows])
    axes[0].set_title(picture(title))
    save_figure(figure, file)


def _tick_epochs(axis: Axes, epochs: Sequence[int]) -> None:
    """Whole epochs only, also where there is a single one."""
    from matplotlib.ticker import MaxNLocator

    first, last = min(epochs), max(epochs)
    aside = max(0.5, 0.02 * (last - first))
    axis.set_xlim(first - aside, last + aside)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def draw_panels(rows: list[list[Panel]], file: Path, title: str, where: Sequence[Panel] = ()) -> None:
    """Rows of pictures with numbered points and boxes, as one PNG; above them where the crops are in their volumes."""
    title = "\n".join(textwrap.fill(line, int(0.85 * _CHARACTERS * WIDTH)) for line in title.split("\n"))
    columns = max(len(row) for row in rows)
    width = WIDTH / max(columns, 2)
    heights = [_OVERVIEW] * bool(where) + [(min(width, _HIGHEST) + 0.3) * len(rows)]
    figure = new_figure(WIDTH, sum(heights) + 0.3 + 0.25 * title.count("\n"))
    figure.suptitle(picture(title), fontsize=11)
    parts: Any = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    if where:
        _draw_row(list(parts[0].subplots(1, len(where), squeeze=False)[0]), where, WIDTH / len(where))
    axes = parts[-1].subplots(len(rows), max(columns, 2), squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        _draw_row(list(line), row, width)
    save_figure(figure, file, small=True)


def _draw_row(axes: Sequence[Axes], panels: Sequence[Panel], width: float) -> None:
    for axis in axes:
        axis.set_axis_off()
    for axis, panel in zip(axes, panels, strict=False):
        _draw_panel(axis, panel, width)


def _draw_panel(axis: Axes, panel: Panel, width: float) -> None:
    """Draw a picture `width` inches wide."""
    from matplotlib.patches import Rectangle

    low, high = panel.values or (float(panel.image.min()), float(panel.image.max()))
    axis.imshow(panel.image, cmap="gray", vmin=low, vmax=high, aspect=panel.aspect, interpolation="nearest")
    for number, row, column in panel.points:
        _draw_point(axis, number, row, column, panel.image.shape)
    thin = [(box, "white", 0.6) for box in panel.frames]
    for (row, column, height, along), colour, line in [
        *thin, *((box, COLOURS[number % len(COLOURS)], 1.5) for number, box in enumerate(panel.boxes))
    ]:  # fmt: skip
        corner = (column - 0.5, row - 0.5)
        outlined = halo(line + 1.2) if line > 1 else None
        axis.add_patch(Rectangle(corner, along, height, fill=False, edgecolor=colour, linewidth=line,
                                 path_effects=outlined))  # fmt: skip
    for text, row, column in panel.texts:
        axis.text(column, row, text, color="white", fontsize=9, ha="center", va="center", path_effects=halo())
    axis.set_title(textwrap.fill(panel.title, int(_CHARACTERS * width)), fontsize=9)


def _draw_point(axis: Axes, number: int, row: float, column: float, size: tuple[int, ...]) -> None:
    """A ring with its number, which is towards the middle of the picture where the ring is at a border."""
    colour, height, width = COLOURS[(number - 1) % len(COLOURS)], *size
    axis.plot(column, row, "o", markersize=7, markerfacecolor="none", markeredgecolor=colour, markeredgewidth=1.6,
              path_effects=halo(3.0))  # fmt: skip
    right, low = column > 0.85 * width, row < 0.15 * height
    axis.annotate(str(number), (column, row), (-6 if right else 6, -6 if low else 6), textcoords="offset points",
                  color=colour, fontsize=10, fontweight="bold", ha="right" if right else "left",
                  va="top" if low else "bottom", path_effects=halo())  # fmt: skip


def draw_views(setup: Setup, method: Method, views: Batch, cases: Sequence[str]) -> None:
    """Draw an augmented batch of the cases."""
    batch, kind = {k: v.cpu() for k, v in views.items()}, type(method)
    panels = kind.panels(batch, setup.config)
    with dispensable("views.png"):
        where = overviews(setup, kind, batch, cases)
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
    setup: Setup, panels: list[list[Panel]], name: str, heading: str, cases: Sequence[str], where: Sequence[Panel] = ()
) -> None:
    named = ", ".join(dict.fromkeys(cases[: len(panels)]))
    draw_panels(panels, setup.folder / f"{name}.png", f"{setup.method}: {heading}\n{named}", where)
