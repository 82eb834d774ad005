"""`progress.png` and `views.png`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nnssl.core.figures import COLOURS, new_figure, save_figure
from nnssl.core.names import picture
from nnssl.core.system import dispensable
from nnssl.methods.base import Batch, Method, Panel
from nnssl.pretraining.metrics import Row
from nnssl.pretraining.setup import Setup

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
    from matplotlib.ticker import MaxNLocator

    panels = [(label, series) for label, series in _PROGRESS if any(key in row for row in rows for key, _ in series)]
    figure = new_figure(9.0, 2.7 * len(panels) + 0.8)
    axes = list(figure.subplots(len(panels), 1, squeeze=False).ravel())
    for axis, (label, series) in zip(axes, panels, strict=True):
        for colour, (key, name) in zip(COLOURS, series, strict=False):
            points = [(row["epoch"], row[key]) for row in rows if key in row]
            if points:
                axis.plot(*zip(*points, strict=True), color=colour, marker="." if len(points) < 60 else "", label=name)
        if label == "embedding deviation" and rows:
            axis.axhline(rows[-1]["embedding_dim"] ** -0.5, color="0.5", linestyle=":", label="spread evenly: 1/√d")
        if label == "learning rate":
            axis.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
        axis.set_ylabel(label)
        if axis is not axes[0]:
            axis.sharex(axes[0])  # a probe may be due in some epochs only
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[1] and series[0][1]:
            axis.legend(loc="best", frameon=False)
    waiting = axes[-1].twinx()
    waiting.plot([r["epoch"] for r in rows], [100 * r["data_wait"] for r in rows], color=COLOURS[1], linestyle="--")
    waiting.set_ylabel("data-wait in %", color=COLOURS[1])
    waiting.set_ylim(0, 100)
    axes[-1].set_ylim(0, 1.05 * max(row["samples_per_second"] for row in rows))
    axes[-1].set_xlabel("epoch")
    axes[0].set_title(title)
    save_figure(figure, file)


def draw_panels(rows: list[list[Panel]], file: Path, title: str) -> None:
    """Rows of pictures with numbered points and boxes, as one PNG."""
    columns = max(len(row) for row in rows)
    figure = new_figure(4.2 * columns, 4.2 * len(rows) + 0.2 + 0.25 * title.count("\n"))
    axes = list(figure.subplots(len(rows), columns, squeeze=False).ravel())
    for i, row in enumerate(rows):
        for j in range(columns):
            axis = axes[i * columns + j]
            axis.set_axis_off()
            if j < len(row):
                _draw_panel(axis, row[j])
    figure.suptitle(picture(title))
    save_figure(figure, file)


def _draw_panel(axis: Axes, panel: Panel) -> None:
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    low, high = panel.values or (float(panel.image.min()), float(panel.image.max()))
    axis.imshow(panel.image, cmap="gray", vmin=low, vmax=high, aspect=panel.aspect, interpolation="nearest")
    for number, row, column in panel.points:
        colour = COLOURS[(number - 1) % len(COLOURS)]
        axis.plot(column, row, "o", markersize=7, markerfacecolor="none", markeredgecolor=colour, markeredgewidth=1.6)
        axis.annotate(str(number), (column, row), (6, 4), textcoords="offset points", color=colour, fontsize=9)
    thin = [(box, "white", 0.6) for box in panel.frames]
    for (row, column, height, width), colour, line in [
        *thin, *((box, COLOURS[number % len(COLOURS)], 1.5) for number, box in enumerate(panel.boxes))
    ]:  # fmt: skip
        corner = (column - 0.5, row - 0.5)
        axis.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=line))
    for text, row, column in panel.texts:
        label = axis.text(column, row, text, color="white", fontsize=9, ha="center", va="center")
        label.set_path_effects([withStroke(linewidth=2, foreground="black")])
    axis.set_title(panel.title, fontsize=10)


def draw_views(setup: Setup, method: Method, views: Batch, cases: Sequence[str]) -> None:
    """Draw an augmented batch of the cases."""
    panels = type(method).panels({k: v.cpu() for k, v in views.items()}, setup.config)
    _draw(setup, panels, "views", "views of the first step", cases)


@torch.no_grad()
def draw_reconstruction(setup: Setup, method: Method, views: Batch, cases: Sequence[str], epoch: int) -> None:
    """Draw what the network makes of an augmented batch after an epoch, if the method shows it; mode as it was."""
    training = method.training
    method.eval()
    panels = method.reconstruction(views)
    method.train(training)
    if panels:
        _draw(setup, panels, "reconstruction", f"after epoch {epoch}", cases)


def _draw(setup: Setup, panels: list[list[Panel]], name: str, heading: str, cases: Sequence[str]) -> None:
    named = "\n".join(dict.fromkeys(cases[: len(panels)]))
    with dispensable(f"{name}.png"):
        draw_panels(panels, setup.folder / f"{name}.png", f"{setup.method}: {heading}\n{named}")
