"""Dice against labelled cases, and against trainable parameters (vox2vec, Fig. 2)."""

from __future__ import annotations

from collections.abc import Iterator
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
_LINE_HEIGHT = 0.045  # of the axis, between two names


def draw_labels(results: Results, baseline: str, file: Path, title: str) -> None:
    """Plot mean Dice over test cases, structures and seeds against labelled cases; bands are the SD over seeds."""
    figure = new_figure(8.0, 5.0)
    axis = figure.subplots()
    ends: list[tuple[float, float, str, str]] = []
    for name, colour, marker, points in _curves(results, baseline):
        x, y = [amount.cases for amount, _ in points], [mean(values) for _, values in points]
        spread = [stdev(values) if len(values) > 1 else 0.0 for _, values in points]
        axis.plot(x, y, color=colour, marker=marker, markersize=6, linewidth=1.8,
                  linestyle="--" if name == baseline else "-")  # fmt: skip
        low, high = ([v + sign * s for v, s in zip(y, spread, strict=True)] for sign in (-1, 1))
        axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        ends.append((y[-1], x[-1], name, colour))
    counts = [a.cases for a in results.amounts]
    axis.set_xscale("log", base=2)
    axis.set_xticks(counts, [f"{a.cases}\n{a.percent:.3g} %" for a in results.amounts])
    axis.minorticks_off()
    axis.set_xlim(counts[0] * 0.9, counts[-1] * (counts[-1] / counts[0] * 2) ** 0.3)
    axis.set_xlabel("labelled cases, and their share of all training cases")
    _finish(figure, axis, ends, title, file)


def draw_parameters(results: Results, baseline: str, file: Path, title: str) -> None:
    """Plot mean Dice against trainable parameters, with one point per amount of labels; the largest is filled."""
    figure = new_figure(8.0, 5.0)
    axis = figure.subplots()
    ends: list[tuple[float, float, str, str]] = []
    for name, colour, marker, points in _curves(results, baseline):
        count = results.parameters[name]
        if count is None:
            continue
        heights = [mean(values) for _, values in points]
        axis.plot([count] * len(points), heights, color=colour, linewidth=1, alpha=0.6)
        for (amount, _), y in zip(points, heights, strict=True):
            filled = amount == results.amounts[-1]
            axis.plot(count, y, marker=marker, color=colour, markersize=9 if filled else 6, linestyle="none",
                      markerfacecolor=colour if filled else "white")  # fmt: skip
        ends.append((heights[-1], count, name, colour))
    axis.set_xscale("log")
    axis.margins(x=0.35)
    axis.set_xlabel("trainable parameters")
    _finish(figure, axis, ends, title, file)


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


def _curves(results: Results, baseline: str) -> Iterator[tuple[str, str, str, list[tuple[Amount, list[float]]]]]:
    """Yield name, colour and marker of every method with results, and its seeds' means by amount of labels."""
    others = [m for m in results.methods if m != baseline]
    for name in results.methods:
        place = -1 if name == baseline else others.index(name)
        colour = "#000000" if name == baseline else _COLOURS[place % len(_COLOURS)]
        points = [(amount, seed_means(results, name, amount.cases)) for amount in results.amounts]
        points = [(amount, values) for amount, values in points if values]
        if points:
            yield name, colour, _MARKERS[(place + 1) % len(_MARKERS)], points


def _finish(figure: Figure, axis: Axes, ends: list[tuple[float, float, str, str]], title: str, file: Path) -> None:
    """Add the title and, without overlap, the names beside the last points; then save."""
    axis.set_ylabel("mean Dice")
    axis.grid(alpha=0.3)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.set_title(title, fontsize=11)
    low, high = axis.get_ylim()
    heights = spread([end[0] for end in ends], _LINE_HEIGHT * (high - low))
    for y, (_, x, name, colour) in zip(heights, ends, strict=True):
        axis.annotate(
            picture(name), (x, y), (10, 0), textcoords="offset points", color=colour, va="center", fontsize=10
        )
    save_figure(figure, file)
