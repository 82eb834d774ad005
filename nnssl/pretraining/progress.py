"""`progress.png`: how a run goes, epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnssl.core.figures import COLOURS, WIDTH, new_figure, save_figure
from nnssl.core.names import picture
from nnssl.pretraining.metrics import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_EVERY = 12  # epochs that are all written
_MARKED = 60  # epochs: more of them need no markers
_LEAST_PERCENT = 10.0  # of an axis: less is noise
_HEIGHT = 2.2  # inches of an axis
_WIDE = 20.0  # ratio of the largest to the smallest value beyond which an axis is logarithmic
_LOOKS = (("-", "o"), ("--", "s"))  # of the first and the second line: told apart without colours

# What an axis shows, and the keys of its lines with their names
_SHOWN: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("loss", (("loss", "training"), ("val_loss", "held-out cases"))),
    ("embedding deviation", (("embedding_std", "training"), ("val_embedding_std", "held-out cases"))),
    ("effective rank (dimensions)", (("effective_rank", ""),)),
    ("probe Dice", (("probe_linear_dice", "linear head"), ("probe_nonlinear_dice", "non-linear head"))),
    ("learning rate", (("learning_rate", ""),)),
    ("speed (samples/s)", (("samples_per_second", ""),)),
    ("waiting for data (% of time)", (("data_wait", ""),)),
)
_LOGARITHMIC = ("loss", "effective rank (dimensions)")
_FROM_ZERO = ("effective rank (dimensions)", "learning rate", "speed (samples/s)", "waiting for data (% of time)")


def draw_progress(rows: list[Row], file: Path, title: str) -> None:
    """Loss, embedding deviation and rank, the probe's Dice, learning rate and speed against the epochs, as one PNG."""
    shown = [(label, series) for label, series in _SHOWN if any(key in row for row in rows for key, _ in series)]
    lines = math.ceil(len(shown) / 2)
    figure = new_figure(WIDTH, _HEIGHT * lines + 0.5)
    for axis, (label, series) in zip(_axes(figure, lines, len(shown)), shown, strict=True):
        _draw(axis, rows, label, series)
        _tick_epochs(axis, [row["epoch"] for row in rows])
    for axis in figure.axes[-2:]:
        axis.set_xlabel("epoch")
    figure.suptitle(picture(title), fontsize=11)
    save_figure(figure, file)


def _axes(figure: Figure, lines: int, number: int) -> list[Axes]:
    """Two axes in a line; the first one is as wide as both where their number is odd."""
    grid = figure.add_gridspec(lines, 2)
    places = [grid[n // 2, n % 2] for n in range(2 * lines)]
    if number % 2:
        places = [grid[0, :], *places[2:]]
    return [figure.add_subplot(place) for place in places]


def _draw(axis: Axes, rows: list[Row], label: str, series: Sequence[tuple[str, str]]) -> None:
    values: list[float] = []
    power = _power(rows) if label == "learning rate" else 0
    for (key, name), colour, (line, marker) in zip(series, COLOURS, _LOOKS, strict=False):
        scale = 100.0 if key == "data_wait" else 10.0**-power
        points = [(row["epoch"], row[key] * scale) for row in rows if key in row]
        if points:
            axis.plot(*zip(*points, strict=True), color=colour, linestyle=line,
                      marker=marker if len(points) < _MARKED else "", markersize=4, label=name)  # fmt: skip
            values += [value for _, value in points if math.isfinite(value)]
    if label == "embedding deviation" and rows:
        axis.axhline(rows[-1]["embedding_dim"] ** -0.5, color="0.4", linestyle=":", label="spread evenly: 1/√d")
    axis.set_ylabel(f"{label} ($10^{{{power}}}$)" if power else label, fontsize=9.5)
    axis.grid(alpha=0.3)
    if label in _LOGARITHMIC and values and min(values) > 0 and max(values) > _WIDE * min(values):
        _make_logarithmic(axis)
    elif label in _FROM_ZERO and values:
        axis.set_ylim(0, max(_LEAST_PERCENT if "%" in label else 1e-12, 1.1 * max(values)))
    else:
        axis.ticklabel_format(axis="y", useOffset=False)
    if series[0][1]:
        axis.legend(loc="best", fontsize=9, framealpha=0.8, edgecolor="none")


def _power(rows: list[Row]) -> int:
    """The power of ten of the largest learning rate; 0 where there is none."""
    most = max((row["learning_rate"] for row in rows if "learning_rate" in row), default=0.0)
    return math.floor(math.log10(most)) if 0 < most < math.inf else 0


def _make_logarithmic(axis: Axes) -> None:
    """With plain numbers at the powers of ten, and between them where there are few."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_formatter(NullFormatter())


def _tick_epochs(axis: Axes, epochs: Sequence[int]) -> None:
    """Whole epochs from the first one on, at least two ticks: a run of one epoch begins at 0."""
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    first, last = min(epochs), max(epochs)
    first = min(first, last - 1)
    length = last - first
    axis.set_xlim(first - 0.04 * length, last + 0.04 * length)
    if length < _EVERY:
        ticks = list(range(first, last + 1))
    else:
        round_ones = MaxNLocator(nbins=6, integer=True).tick_values(first, last)
        ticks = [first, *(int(tick) for tick in round_ones if first + 0.08 * length < tick <= last)]
    axis.set_xticks(ticks)
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
