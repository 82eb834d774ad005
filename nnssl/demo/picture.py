"""The picture of the demo: two slices with both predictions, and the Dice of every organ on every test scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnssl.core.figures import COLOURS, WIDTH, draw_scale_bar, new_figure, save_figure, write_inside
from nnssl.demo.anatomy import LABELS
from nnssl.demo.gain import CaseDice, Gain
from nnssl.demo.steps import RANDOM, Folders

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Volume = NDArray[Any]
ALL = "mean"
_WINDOW_HU = (-160, 240)  # the usual one for the abdomen
_VIEWS = {"axial": "RLAP", "coronal": "RLSI"}  # sides: left, right, upper, lower
_AT = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.98), (0.5, 0.02))  # where these are written, in shares of the frame
_CHART = 2.6  # inches of the chart's height
_MARKS = {"pretrained": ("o", "black", "black", -0.17), "random weights": ("^", "white", "#666666", 0.17)}


def draw_comparison(folders: Folders, gain: Gain, setting: str, file: Path) -> None:
    """Draw the test scan with the median Dice, and the Dice of all organs and scans.

    Args:
        folders: of the seed whose predictions are shown, the first one of the gain.
        gain: what both trainings reached.
        setting: what was trained and how, below the title.
        file: of the picture.
    """
    scans = {scan: mean(organs.values()) for scan, organs in gain.pretrained[0].items()}
    case = min(scans, key=lambda scan: abs(scans[scan] - median(scans.values())))
    dice = {gain.method: scans[case], RANDOM: mean(gain.random[0][case].values())}
    names = {gain.method: "pretrained", RANDOM: "random weights"}
    predictions = {
        f"{name}: Dice {dice[backbone]:.2f}": _read_volume(folders.predictions(backbone) / f"{case}.nii.gz")[0]
        for backbone, name in names.items()
    }
    image, spacing = _read_volume(folders.images / f"{case}_0000.nii.gz")
    truth, _ = _read_volume(folders.truth / f"{case}.nii.gz")
    depth, height, width = (n * s for n, s in zip(truth.shape, spacing, strict=True))
    slices = WIDTH / 4 * (height + depth) / width + 0.6
    figure = new_figure(WIDTH, slices + _CHART + 0.7)
    (above,), (below,) = figure.subfigures(2, 1, squeeze=False, height_ratios=[slices, _CHART])
    _draw_slices(above, image, {f"test scan {case}": None, "truth": truth, **predictions}, truth, spacing)
    _draw_dice(below.subplots(), {"pretrained": gain.pretrained, "random weights": gain.random})
    figure.suptitle(f"{gain.title}\n{setting}", fontsize=12)
    save_figure(figure, file)


def _read_volume(file: Path) -> tuple[Volume, tuple[float, float, float]]:
    """A NIfTI volume (Z, Y, X) and its voxel size (z, y, x) in mm."""
    import SimpleITK as sitk

    image = sitk.ReadImage(str(file))
    x, y, z = image.GetSpacing()
    return sitk.GetArrayFromImage(image), (z, y, x)


def _draw_slices(
    figure: Any,
    image: Volume,
    columns: Mapping[str, Volume | None],
    truth: Volume,
    spacing: tuple[float, float, float],
) -> None:
    """Draw an axial and a coronal slice of the image (Z, Y, X) in HU: a column for each label map, or none."""
    depth, height, width = (n * s for n, s in zip(truth.shape, spacing, strict=True))
    rows = figure.subplots(2, len(columns), squeeze=False, height_ratios=[height, depth])
    for axis, row in enumerate(rows):
        index = _fullest(truth, axis)
        aspect = (spacing[1] if axis == 0 else spacing[0]) / spacing[2]
        for panel, (name, labels) in zip(row, columns.items(), strict=True):
            _draw_scan(panel, image.take(index, axis), None if labels is None else labels.take(index, axis), aspect)
            if axis == 0:
                panel.set_title(name, fontsize=11)
            else:
                panel.invert_yaxis()  # the head is up
        _write_sides(row[0], axis, index)
        draw_scale_bar(row[0], width, 9)


def _write_sides(panel: Axes, axis: int, index: int) -> None:
    """Write the letters of a slice's sides, as in `nnssl.analysis.planes`, its view and its number, from 0."""
    view, sides = list(_VIEWS.items())[axis]
    for side, (column, row) in zip(sides, _AT, strict=True):
        write_inside(panel, side, column, row, 9)
    write_inside(panel, f"{view} {index}", 0.02, 0.98, 9)


def _fullest(labels: Volume, axis: int) -> int:
    """The slice along an axis with the most organs, and of those the one with the largest share of each."""
    others = tuple(i for i in range(3) if i != axis)
    area = np.stack([(labels == n).sum(others) for n in LABELS.values()])  # (organs, slices)
    share = area / area.max(1, keepdims=True).clip(1)
    return int(((share > 0.2).sum(0) + share.mean(0)).argmax())


def _draw_scan(panel: Axes, image: Volume, labels: Volume | None, aspect: float) -> None:
    low, high = _WINDOW_HU
    grey = ((image.astype(np.float32) - low) / (high - low)).clip(0, 1)
    shown = np.repeat(grey[..., None], 3, axis=-1)
    if labels is not None:
        for n in LABELS.values():
            colour = [int(COLOURS[n - 1][i : i + 2], 16) / 255 for i in (1, 3, 5)]
            shown[labels == n] = 0.35 * shown[labels == n] + 0.65 * np.asarray(colour, np.float32)
    panel.imshow(shown, aspect=aspect, interpolation="nearest")
    panel.set_axis_off()


def _draw_dice(chart: Axes, trainings: Mapping[str, Sequence[CaseDice]]) -> None:
    """Draw a mark for every test scan and seed, and a line at their mean; the organs' names have their colours."""
    for name, seeds in trainings.items():
        shape, face, edge, offset = _MARKS[name]
        for place, organ in enumerate((*LABELS, ALL)):
            values = [
                mean(dice.values()) if organ == ALL else dice[organ] for scans in seeds for dice in scans.values()
            ]
            across = place + offset + np.linspace(-0.09, 0.09, len(values))
            first = name if place == 0 else None
            chart.plot(across, values, shape, color=edge, markerfacecolor=face, markersize=5.5, label=first)
            chart.hlines(mean(values), place + offset - 0.14, place + offset + 0.14, color=edge, linewidth=2)
    chart.plot([], [], color="black", linewidth=2, label="mean")
    for label in LABELS.values():
        chart.plot(label - 1, -0.065, "s", color=COLOURS[label - 1], markersize=10, clip_on=False,
                   transform=chart.get_xaxis_transform())  # fmt: skip
    chart.axvline(len(LABELS) - 0.5, color="#bbbbbb", linewidth=1)
    chart.set_xticks(range(len(LABELS) + 1), [organ.replace("_", " ") for organ in (*LABELS, ALL)], fontsize=11)
    chart.tick_params(axis="x", length=0, pad=14)
    chart.set_ylim(-0.03, 1.03)
    chart.set_ylabel("Dice of a test scan", fontsize=11)
    chart.grid(axis="y", color="#dddddd")
    chart.set_axisbelow(True)
    chart.spines[["top", "right"]].set_visible(False)
    chart.legend(loc="upper center", bbox_to_anchor=(0.5, 1.17), ncols=3, frameon=False, fontsize=11)
