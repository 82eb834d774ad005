"""Dice against labelled cases, and against trainable parameters (vox2vec, Fig. 2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from nnssl.benchmarking.results import Results, seed_means
from nnssl.benchmarking.subsets import Amount
from nnssl.core.figures import WIDTH, new_figure, save_figure
from nnssl.core.names import picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours that are visible on white and distinct for every kind of colour vision, then a grey and Tol's
# wine; the baseline is black.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#882255")
_MARKERS = "osD^vP*X"
_LINES = ("-", ":", "-.")  # of the first eight, of the next eight, ...
_APART = 0.012  # of the axis, between two error bars at the same place
_SPREAD = 0.8  # of the axis, all of them where there is one amount
_SAME = 1.05  # the ratio of numbers of parameters that are drawn as one
_ALL_SAME = 30.0  # for a plot of nothing but such numbers: far enough apart for many error bars


def draw_labels(results: Results, baseline: str, file: Path, title: str) -> None:
    """Plot mean Dice over test cases, structures and seeds against labelled cases; bars are the SD over seeds."""
    figure = new_figure(WIDTH, 5.0)
    axis = figure.subplots()
    counts = [a.cases for a in results.amounts]
    low, high = counts[0] * 0.8, counts[-1] * 1.25
    curves = list(_curves(results, baseline))
    # a single amount leaves the whole width to the methods
    aside = _side_by_side(len(curves), high / low, _APART if len(counts) > 1 else _SPREAD / max(len(curves), 1))
    for beside, curve in zip(aside, curves, strict=True):
        x = [amount.cases * beside for amount, _ in curve.points]
        axis.errorbar(x, curve.means, curve.deviations, color=curve.colour, marker=curve.marker, markersize=6,
                      linewidth=1.8, elinewidth=1.2, capsize=3, linestyle=curve.line)  # fmt: skip
    axis.set_xscale("log", base=2)
    axis.set_xticks(counts, [f"{a.cases}\n{a.percent:.3g} %" for a in results.amounts])
    axis.minorticks_off()
    axis.set_xlim(low * aside[0], high * aside[-1]) if aside else axis.set_xlim(low, high)
    axis.set_xlabel("labelled cases, and their share of all training cases")
    _finish(figure, axis, curves, title, file)


def draw_parameters(results: Results, baseline: str, file: Path, title: str) -> None:
    """Plot mean Dice against trainable parameters, with one point per amount of labels; bars are the SD over seeds.

    The points of the largest amount are filled. Methods with about the same number stand side by side.
    """
    figure = new_figure(WIDTH, 5.0)
    axis = figure.subplots()
    curves = [(count, curve) for curve in _curves(results, baseline) if (count := results.parameters[curve.name])]
    counts = sorted(count for count, _ in curves)
    width = counts[-1] / counts[0] if counts else 1.0
    for first in _groups(counts):
        same = [curve for count, curve in curves if first <= count <= first * _SAME]
        aside = _side_by_side(len(same), width if width > _SAME else _ALL_SAME)
        for beside, curve in zip(aside, same, strict=True):
            _draw_amounts(axis, first * beside, curve, results.amounts[-1])
    axis.set_xscale("log")
    if counts and width <= _SAME:
        ends_of = sorted({counts[0], counts[-1]})
        axis.set_xticks([counts[0]], [" to ".join(f"{count:,}" for count in ends_of)])
        axis.minorticks_off()
        axis.set_xlim(counts[0] / 1.6, counts[0] * 1.6)
    axis.margins(x=0.1)
    axis.set_xlabel("trainable parameters")
    _finish(figure, axis, [curve for _, curve in curves], title, file)


def _groups(counts: list[int]) -> list[int]:
    """The first of every group of about the same ascending numbers."""
    found: list[int] = []
    for count in counts:
        if not found or count > found[-1] * _SAME:
            found.append(count)
    return found


def _draw_amounts(axis: Axes, x: float, curve: _Curve, largest: Amount) -> None:
    axis.plot([x] * len(curve.points), curve.means, color=curve.colour, linewidth=1, alpha=0.6)
    for (amount, _), y, deviation in zip(curve.points, curve.means, curve.deviations, strict=True):
        filled = amount == largest
        axis.errorbar(x, y, deviation, marker=curve.marker, color=curve.colour, markersize=9 if filled else 6,
                      markerfacecolor=curve.colour if filled else "white", capsize=4, elinewidth=1.2)  # fmt: skip


def _side_by_side(number: int, width: float, apart: float = _APART) -> list[float]:
    """Factors that place curves beside each other on a logarithmic axis whose ends differ by the factor `width`."""
    return [float(width ** (apart * (i - (number - 1) / 2))) for i in range(number)]


@dataclass(frozen=True)
class _Curve:
    """A method with results: how it is drawn, and its seeds' means by amount of labels."""

    name: str
    colour: str
    marker: str
    line: str
    points: list[tuple[Amount, list[float]]]

    @property
    def means(self) -> list[float]:
        return [mean(values) for _, values in self.points]

    @property
    def deviations(self) -> list[float]:
        """Over the seeds; 0 of a single one."""
        return [stdev(values) if len(values) > 1 else 0.0 for _, values in self.points]


def _curves(results: Results, baseline: str) -> Iterator[_Curve]:
    others = [m for m in results.methods if m != baseline]
    for name in results.methods:
        points = [(amount, seed_means(results, name, amount.cases)) for amount in results.amounts]
        points = [(amount, values) for amount, values in points if values]
        place = -1 if name == baseline else others.index(name)
        colour = "#000000" if name == baseline else _COLOURS[place % len(_COLOURS)]
        round_ = max(place, 0) // len(_COLOURS)
        marker = _MARKERS[(place + 1 + round_) % len(_MARKERS)]
        if points:
            yield _Curve(name, colour, marker, "--" if name == baseline else _LINES[round_ % len(_LINES)], points)


def _where(amount: Amount, most: int) -> str:
    """Which point a number is of, where it is not of the most labelled cases."""
    return "" if amount.cases == most else f" ({amount.cases} cases)"


def _finish(figure: Figure, axis: Axes, curves: list[_Curve], title: str, file: Path) -> None:
    """Add the title and the names, in the order of the last points; then save."""
    from matplotlib.lines import Line2D

    axis.set_ylabel("mean Dice (0 to 1)")
    axis.grid(alpha=0.3)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.set_title(picture(title), fontsize=11)
    low, high = axis.get_ylim()
    axis.set_ylim(max(low, min(0.0, *(m for c in curves for m in c.means), 0.0) - 0.02), min(high, 1.02))
    highest = sorted(curves, key=lambda curve: -curve.means[-1])
    looks: list[dict[str, Any]] = [{"color": c.colour, "marker": c.marker, "linestyle": c.line} for c in highest]
    marks = [Line2D([], [], markersize=7, **look) for look in looks]
    most = max((c.points[-1][0].cases for c in curves), default=0)
    names = [picture(f"{c.name} {c.means[-1]:.2f}{_where(c.points[-1][0], most)}") for c in highest]
    figure.legend(marks, names, loc="outside right upper", fontsize=10, frameon=False, handlelength=2.6,
                  title="Dice of the last points", title_fontsize=9)  # fmt: skip
    save_figure(figure, file)
