"""`results.png`: ROC curves, calibration and confusion of classes; predicted against true numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nnssl.classification.labels import Target
from nnssl.classification.results import Rated, shown_score
from nnssl.classification.scores import confusion, reliability, roc_curve
from nnssl.core.figures import COLOURS, WIDTH, new_figure, save_figure
from nnssl.core.names import picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINES = ("-", "--", "-.", ":")
_MARKERS = "osD^v"
_LONG = 14  # letters of a class on an axis
_ROOM = 22  # letters of all classes that have room beside each other
_WIDE = 30  # letters of a line of a legend
_HEIGHT, _LINE = 3.6, 0.19  # inches of the axes of classes, and of a line of the legend below them
_MOST_WRITTEN = 8  # classes whose numbers are written into the confusion matrix


def draw_results(file: Path, rated: Sequence[Rated], target: Target, title: str) -> None:
    """Draw the results of a target as PNG, 900 pixels wide.

    Args:
        file: to write.
        rated: the most important first; what knows nothing of the images is not drawn.
        target: that was predicted.
        title: of the figure.
    """
    cases = len(rated[0].truth)
    if target.classes:
        figure = new_figure(WIDTH, _HEIGHT)
        roc, calibration, table = figure.subplots(1, 3)
        _draw_roc(roc, rated, target)
        _draw_calibration(calibration, rated)
        _draw_confusion(table, rated[0], target)
        for axis in (roc, calibration, table):
            axis.set_box_aspect(1)
            axis.set_anchor("N")  # else their middles are in line, and the page has a gap at its top
        lines = [
            sum(text.get_text().count("\n") + 1 for text in axis.get_legend().get_texts())
            for axis in (roc, calibration)
        ]
        figure.set_size_inches(WIDTH, _HEIGHT + _LINE * max(lines))
    else:
        shown = rated[:2]
        figure = new_figure(WIDTH, 5.6)
        for number, (axis, one) in enumerate(zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True)):
            _draw_scatter(axis, one, target, number)
    scale = "" if target.classes else "\nR²: 1 is perfect, 0 is the mean of all cases"
    figure.suptitle(picture(f"{title} ({cases} test cases){scale}"), fontsize=11)
    save_figure(figure, file, small=True)


def _legend(axis: Axes) -> None:
    axis.legend(fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.22), frameon=False, handlelength=2.6)


def _draw_roc(axis: Axes, rated: Sequence[Rated], target: Target) -> None:
    """One curve a kind of prediction of two classes; one a class of the first kind where there are more."""
    if len(target.classes) == 2:
        curves = [(one, 1, one.kind) for one in rated]
    else:
        curves = [(rated[0], number, name) for number, name in enumerate(target.classes[: len(COLOURS) - 1])]
    for place, (one, number, name) in enumerate(curves):
        false, true = roc_curve(one.predicted[:, number], one.truth == number)
        area = float(np.sum(np.diff(false) * (true[1:] + true[:-1]) / 2))
        # the first ones are wide, so that they are seen under others of the same course
        axis.plot(false, true, color=COLOURS[place % len(COLOURS)], linestyle=_LINES[place % len(_LINES)],
                  linewidth=max(1.4, 3.2 - 0.7 * place), label=_named(name, area))  # fmt: skip
    _draw_diagonal(axis, (0, 1), "chance")
    axis.set_xlabel("false positive rate")
    axis.set_ylabel("true positive rate")
    of = picture(target.classes[1]) if len(target.classes) == 2 else f"each class, {rated[0].kind}"
    axis.set_title(textwrap.fill(f"ROC of {of}, with its area", 34), fontsize=9.5)
    _legend(axis)


def _draw_diagonal(axis: Axes, ends: Sequence[float], name: str) -> None:
    axis.plot(ends, ends, color="0.4", linewidth=1.2, linestyle=(0, (1, 2)), label=name)


def _named(name: str, value: float) -> str:
    """A name with its number, in lines as wide as an axis."""
    return picture(textwrap.fill(f"{name}: {value:.2f}", _WIDE))


def _draw_calibration(axis: Axes, rated: Sequence[Rated]) -> None:
    """The area of a point is the number of its cases."""
    for place, one in enumerate(rated):
        found = reliability(one.predicted, one.truth)
        colour, marker, line = COLOURS[place % len(COLOURS)], _MARKERS[place % len(_MARKERS)], _LINES[place % 4]
        label = _named(one.kind, one.pooled["calibration_error"].value)
        axis.plot(found.confidence, found.correct, color=colour, linestyle=line, linewidth=1.2)
        axis.scatter(found.confidence, found.correct, s=12 + 110 * found.count / found.count.sum(), color=colour,
                     marker=marker)  # fmt: skip
        axis.plot([], [], color=colour, linestyle=line, marker=marker, markersize=5, label=label)
    _draw_diagonal(axis, (0, 1), "perfect")
    lowest = max(0.0, min(1 / one.predicted.shape[1] for one in rated) - 0.05)
    axis.set_xlabel("probability of the predicted class")
    axis.set_ylabel("share of correct cases")
    axis.set_title("calibration, with its error\n(larger points: more cases)", fontsize=9.5)
    axis.set_xlim(lowest, 1.03)
    axis.set_ylim(-0.03, 1.03)
    _legend(axis)


def _draw_confusion(axis: Axes, one: Rated, target: Target) -> None:
    table = confusion(one.predicted, one.truth)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    axis.imshow(shares, "cividis", vmin=0, vmax=1)
    names = [picture(textwrap.shorten(name, _LONG, placeholder="...")) for name in target.classes]
    turned = len(names) * max(map(len, names)) > _ROOM
    axis.set_xticks(range(len(names)), names, rotation=45 if turned else 0, ha="right" if turned else "center",
                    rotation_mode="anchor" if turned else None, fontsize=8.5)  # fmt: skip
    axis.set_yticks(range(len(names)), names, fontsize=8.5)
    if len(names) <= _MOST_WRITTEN:
        for row, column in np.ndindex(*table.shape):
            dark = shares[row, column] < 0.6
            axis.text(column, row, str(table[row, column]), ha="center", va="center", color="w" if dark else "k")
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    axis.set_title(f"cases, {one.kind}\n(brighter: larger share of the row)", fontsize=9.5)


def _draw_scatter(axis: Axes, one: Rated, target: Target, number: int) -> None:
    axis.scatter(one.truth, one.predicted, s=26, color=COLOURS[number], marker=_MARKERS[number], alpha=0.7,
                 edgecolors="black", linewidths=0.5)  # fmt: skip
    ends = [float(f(np.concatenate([one.truth, one.predicted]))) for f in (np.min, np.max)]
    aside = 0.05 * (ends[1] - ends[0]) or 0.5
    ends = [ends[0] - aside, ends[1] + aside]
    _draw_diagonal(axis, ends, "perfect")
    axis.legend(fontsize=9, loc="upper left")
    axis.set_xlim(*ends)
    axis.set_ylim(*ends)
    axis.set_aspect("equal")
    axis.grid(alpha=0.3)
    axis.set_xlabel(picture(f"true {target.name}"))
    axis.set_ylabel(picture(f"predicted {target.name}"))
    # one unit for all: that of the column in labels.csv
    axis.set_title(
        f"{one.kind}\nmean absolute error {shown_score(one.pooled['mae'])}\nR² {shown_score(one.pooled['r2'])} ",
        fontsize=9.5,
    )
