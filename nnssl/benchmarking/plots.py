"""Dice against labelled cases, and against trainable parameters (vox2vec, Fig. 2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

from nnssl.benchmarking.results import Results, seed_means
from nnssl.benchmarking.subsets import Amount
from nnssl.core.figures import new_figure, save_figure
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
_SAME = 1.05  # the ratio of numbers of parameters that are drawn as one
_ALL_SAME = 30.0  # for a plot of nothing but such numbers: far enough apart for many error bars
_LINE_HEIGHT = 0.045  # of the axis, between two names


def draw_labels(results: Results, baseline: str, file: Path, title: str) -> None:
    """Plot mean Dice over test cases, structures and seeds against labelled cases; bars are the SD over seeds."""
    figure = new_figure(8.0, 5.0)
    axis = figure.subplots()
    ends: list[_End] = []
    counts = [a.cases for a in results.amounts]
    low, high = counts[0] * 0.9, counts[-1] * (counts[-1] / counts[0] * 2) ** 0.3
    curves = list(_curves(results, baseline))
    aside = _side_by_side(len(curves), high / low)
    for beside, curve in zip(aside, curves, strict=True):
        x = [amount.cases * beside for amount, _ in curve.points]
        axis.errorbar(x, curve.means, curve.deviations, color=curve.colour, marker=curve.marker, markersize=6,
                      linewidth=1.8, elinewidth=1.2, capsize=3, linestyle=curve.line)  # fmt: skip
        ends.append(_End(curve.points[-1][0].cases * aside[-1], curve))
    axis.set_xscale("log", base=2)
    axis.set_xticks(counts, [f"{a.cases}\n{a.percent:.3g} %" for a in results.amounts])
    axis.minorticks_off()
    axis.set_xlim(low * aside[0] if aside else low, high)
    axis.set_xlabel("labelled cases, and their share of all training cases")
    _finish(figure, axis, ends, title, file)


def draw_parameters(results: Results, baseline: str, file: Path, title: str) -> None:
    """Plot mean Dice against trainable parameters, with one point per amount of labels; bars are the SD over seeds.

    The points of the largest amount are filled. Methods with about the same number stand side by side.
    """
    figure = new_figure(8.0, 5.0)
    axis = figure.subplots()
    ends: list[_End] = []
    curves = [(count, curve) for curve in _curves(results, baseline) if (count := results.parameters[curve.name])]
    counts = sorted(count for count, _ in curves)
    width = counts[-1] / counts[0] if counts else 1.0
    for first in _groups(counts):
        same = [curve for count, curve in curves if first <= count <= first * _SAME]
        aside = _side_by_side(len(same), width if width > _SAME else _ALL_SAME)
        for beside, curve in zip(aside, same, strict=True):
            _draw_amounts(axis, first * beside, curve, results.amounts[-1])
            ends.append(_End(first * aside[-1], curve))
    axis.set_xscale("log")
    if counts and width <= _SAME:
        ends_of = sorted({counts[0], counts[-1]})
        axis.set_xticks([counts[0]], [" to ".join(f"{count:,}" for count in ends_of)])
        axis.minorticks_off()
        axis.set_xlim(counts[0] / 2, counts[0] * 2)
    axis.margins(x=0.35)
    axis.set_xlabel("trainable parameters")
    _finish(figure, axis, ends, title, file)


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


def _side_by_side(number: int, width: float) -> list[float]:
    """Factors that place curves beside each other on a logarithmic axis whose ends differ by the factor `width`."""
    return [float(width ** (_APART * (i - (number - 1) / 2))) for i in range(number)]


def spread(heights: list[float], gap: float) -> list[float]:
    """Move heights as little as possible so that any two are at least `gap` apart, in the same order."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    groups: list[list[float]] = []  # [centre, number of members]
    for i in order:
        groups.append([heights[i], 1])
        while len(groups) > 1 and groups[-1][0] - groups[-2][0] < gap * (groups[-1][1] + groups[-2][1]) / 2:
            (a, n), (b, m) = groups[-2:]
            groups[-2:] = [[(a * n + b * m) / (n + m), n + m]]
    placed = [centre + gap * (k - (n - 1) / 2) for centre, n in groups for k in range(int(n))]
    result = [0.0] * len(heights)
    for i, height in zip(order, placed, strict=True):
        result[i] = height
    return result


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


@dataclass(frozen=True)
class _End:
    """Where the name of a curve stands: at this place, as high as its last point."""

    x: float
    curve: _Curve


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


def _finish(figure: Figure, axis: Axes, ends: list[_End], title: str, file: Path) -> None:
    """Add the title and, without overlap, the names beside the last points; then save."""
    axis.set_ylabel("mean Dice")
    axis.grid(alpha=0.3)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.set_title(title, fontsize=11)
    low, high = axis.get_ylim()
    line = _LINE_HEIGHT * (high - low)
    heights = spread([end.curve.means[-1] for end in ends], line)
    axis.set_ylim(
        min([low, *(y - line for y in heights)]), max([high, *(y + line for y in heights)])
    )  # the names are inside
    for y, end in zip(heights, ends, strict=True):
        axis.annotate(
            picture(end.curve.name), (end.x, y), (10, 0), textcoords="offset points", color=end.curve.colour,
            va="center", fontsize=10,
        )  # fmt: skip
    save_figure(figure, file)
