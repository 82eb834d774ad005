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
_MOST_WRITTEN = 8  # classes whose numbers are written into the confusion matrix


def draw_results(file: Path, rated: Sequence[Rated], target: Target, title: str) -> None:
    """Draw the results of a target as PNG, 900 pixels wide.

    Args:
        file: to write.
        rated: the most important first; what knows nothing of the images is not drawn.
        target: that was predicted.
        title: of the figure.
    """
    if target.classes:
        figure = new_figure(WIDTH, 4.6)
        roc, calibration, table = figure.subplots(1, 3)
        _draw_roc(roc, rated, target)
        _draw_calibration(calibration, rated)
        _draw_confusion(table, rated[0], target)
    else:
        shown = rated[:2]
        figure = new_figure(WIDTH, 4.6)
        for axis, one in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            _draw_scatter(axis, one, target)
    figure.suptitle(picture(title), fontsize=11)
    save_figure(figure, file, small=True)


def _draw_roc(axis: Axes, rated: Sequence[Rated], target: Target) -> None:
    """One curve a kind of prediction of two classes; one a class of the first kind where there are more."""
    if len(target.classes) == 2:
        curves = [(one, 1, one.kind) for one in rated]
    else:
        curves = [(rated[0], number, name) for number, name in enumerate(target.classes[: len(COLOURS) - 1])]
    for place, (one, number, name) in enumerate(curves):
        false, true = roc_curve(one.predicted[:, number], one.truth == number)
        area = float(np.sum(np.diff(false) * (true[1:] + true[:-1]) / 2))
        axis.plot(false, true, color=COLOURS[place % len(COLOURS)], linestyle=_LINES[place % len(_LINES)],
                  label=picture(f"{name}: {area:.2f}"))  # fmt: skip
    axis.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
    axis.set_xlabel("false positive rate")
    axis.set_ylabel("true positive rate")
    of = picture(target.classes[1]) if len(target.classes) == 2 else f"each class, {rated[0].kind}"
    axis.set_title(textwrap.fill(f"ROC of {of}, with its area", 34), fontsize=9.5)
    axis.set_aspect("equal")
    axis.legend(fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)


def _draw_calibration(axis: Axes, rated: Sequence[Rated]) -> None:
    for place, one in enumerate(rated):
        found = reliability(one.predicted, one.truth)
        axis.plot(found.confidence, found.correct, color=COLOURS[place % len(COLOURS)], linestyle=_LINES[place % 4],
                  marker=_MARKERS[place % len(_MARKERS)], markersize=4,
                  label=f"{one.kind}: {one.pooled['calibration_error'].value:.2f}")  # fmt: skip
    axis.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
    axis.set_xlabel("probability of the predicted class")
    axis.set_ylabel("share of correct cases")
    axis.set_title("calibration, with its error", fontsize=9.5)
    lowest = min(1 / one.predicted.shape[1] for one in rated)
    axis.set_xlim(max(0.0, lowest - 0.05), 1.02)
    axis.set_ylim(-0.03, 1.03)
    axis.set_box_aspect(1)
    axis.legend(fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)


def _draw_confusion(axis: Axes, one: Rated, target: Target) -> None:
    table = confusion(one.predicted, one.truth)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    axis.imshow(shares, "cividis", vmin=0, vmax=1)
    names = [picture(textwrap.shorten(name, _LONG, placeholder="...")) for name in target.classes]
    axis.set_xticks(range(len(names)), names, rotation=45 if max(map(len, names)) > 6 else 0, fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    if len(names) <= _MOST_WRITTEN:
        for row, column in np.ndindex(*table.shape):
            dark = shares[row, column] < 0.6
            axis.text(column, row, str(table[row, column]), ha="center", va="center", color="w" if dark else "k")
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    axis.set_title(f"cases, {one.kind}", fontsize=9.5)


def _draw_scatter(axis: Axes, one: Rated, target: Target) -> None:
    axis.scatter(one.truth, one.predicted, s=16, color=COLOURS[0], alpha=0.7, edgecolors="none")
    ends = [float(f(np.concatenate([one.truth, one.predicted]))) for f in (np.min, np.max)]
    aside = 0.05 * (ends[1] - ends[0])
    ends = [ends[0] - aside, ends[1] + aside]
    axis.plot(ends, ends, color="0.6", linewidth=0.8, linestyle=":")
    axis.set_xlim(*ends)
    axis.set_ylim(*ends)
    axis.set_aspect("equal")
    axis.set_xlabel(picture(f"{target.name}, true"))
    axis.set_ylabel(picture(f"{target.name}, predicted"))
    axis.set_title(f"{one.kind}\nMAE {shown_score(one.pooled['mae'])}\nR2 {shown_score(one.pooled['r2'])}",
                   fontsize=9.5)  # fmt: skip
