"""Dice of every organ with the pretrained and with the random network, as a table, a file and a picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nnssl.core import names as escape
from nnssl.core.errors import UserError
from nnssl.core.figures import COLOURS, new_figure, save_figure
from nnssl.core.files import read_json
from nnssl.core.own_files import SummaryFile
from nnssl.demo.anatomy import LABELS
from nnssl.demo.steps import Folders

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Volume = NDArray[Any]

ALL = "mean"
_WINDOW_HU = (-160, 240)  # the usual one for the abdomen
_AGAIN = "delete the demo's folder and run the demo again"
_REPORT, _TABLE, _PICTURE = "report.md", "dice.csv", "comparison.png"


@dataclass(frozen=True)
class Score:
    """Dice of one organ: mean over the test scans, for one backbone and seed."""

    seed: int
    backbone: str
    organ: str
    dice: float


def read_scores(summary: Path, seed: int, backbone: str) -> list[Score]:
    """Read the scores in nnU-Net's summary.json, organ by organ, and add their mean as the organ `mean`.

    Raises:
        UserError: the evaluation is missing.
    """
    dice = read_json(summary, SummaryFile, _AGAIN).get("mean", {})
    if missing := [organ for organ, label in LABELS.items() if "Dice" not in dice.get(str(label), {})]:
        raise UserError(f"{summary} has no Dice of {', '.join(missing)}; {_AGAIN}")
    scores = [Score(seed, backbone, organ, float(dice[str(label)]["Dice"])) for organ, label in LABELS.items()]
    return [*scores, Score(seed, backbone, ALL, mean(s.dice for s in scores))]


def case_dice(summary: Path) -> dict[str, float]:
    """Read the mean Dice over the organs of every test case from a summary.json."""
    cases = read_json(summary, SummaryFile, _AGAIN)["metric_per_case"]
    return {
        Path(case["prediction_file"]).name.split(".")[0]: mean(m["Dice"] for m in case["metrics"].values())
        for case in cases
    }


def table(scores: Iterable[Score], backbones: Sequence[str]) -> list[list[str]]:
    """Rows of text, headings first: organ, Dice of both backbones, and the lead of the first over the second.

    With several seeds every number is their mean ± standard deviation.
    """
    by_place = {(s.organ, s.backbone, s.seed): s.dice for s in scores}
    seeds = sorted({seed for _, _, seed in by_place})
    rows = [["organ", *backbones, "ahead by"]]
    for organ in (*LABELS, ALL):
        first, second = ([by_place[organ, backbone, seed] for seed in seeds] for backbone in backbones)
        lead = [a - b for a, b in zip(first, second, strict=True)]
        rows.append([organ.replace("_", " "), _number(first), _number(second), _number(lead, "+")])
    return rows


def _number(values: Sequence[float], sign: str = "") -> str:
    spread = f" ± {stdev(values):.3f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.3f}{spread}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns, readable as plain text."""
    rows = [[escape.markdown(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def remove_report(home: Path) -> None:
    """Remove the files of `write_report`."""
    for name in (_REPORT, _TABLE, _PICTURE):
        (home / name).unlink(missing_ok=True)


def write_report(
    folders: Folders,
    scores: Sequence[Score],
    backbones: tuple[str, str],
    caption: str,
    commands: Sequence[tuple[str, float]],
) -> str:
    """Write report.md, dice.csv (one line a score) and comparison.png into the demo's folder.

    Args:
        folders: of the seed whose predictions the picture shows.
        scores: of all seeds.
        backbones: the pretrained one and the random one.
        caption: of the table.
        commands: commands that ran, with their seconds.

    Returns:
        The table with its caption, and the paths of the files.
    """
    home, seeds = folders.home, sorted({score.seed for score in scores})
    if len(seeds) > 1:
        caption += f"; mean ± standard deviation over the seeds {', '.join(map(str, seeds))}"
    lines = [[s.seed, s.backbone, s.organ, f"{s.dice:.4f}"] for s in scores]
    (home / _TABLE).write_text(escape.csv_table(["seed", "backbone", "organ", "dice"], lines), newline="")
    _draw(folders, backbones)
    rows = markdown(table(scores, backbones))
    ran = "\n".join(f"    {seconds:6.1f} s  {line}" for line, seconds in commands)
    text = f"# nnssl demo\n\n{caption}.\n\n{rows}\n\n![comparison]({_PICTURE})\n\n## What ran\n\n{ran}\n"
    (home / _REPORT).write_text(text)
    return f"{caption}:\n\n{rows}\n\nreport: {home / _REPORT}\npicture: {home / _PICTURE}"


def _draw(folders: Folders, backbones: tuple[str, str]) -> None:
    """Draw the test scan with the median Dice with pretraining."""
    pretrained, _ = backbones
    dice = {backbone: case_dice(folders.summary(backbone)) for backbone in backbones}
    middle = median(dice[pretrained].values())
    case = min(dice[pretrained], key=lambda name: abs(dice[pretrained][name] - middle))
    weights = (f"pretrained with {pretrained}", "random weights")
    predictions = {
        f"{name}: Dice {dice[backbone][case]:.2f}": _read_volume(folders.predictions(backbone) / f"{case}.nii.gz")[0]
        for backbone, name in zip(backbones, weights, strict=True)
    }
    image, spacing = _read_volume(folders.images / f"{case}_0000.nii.gz")
    truth, _ = _read_volume(folders.truth / f"{case}.nii.gz")
    title = f"Test scan {case}: linear heads on two frozen networks, trained with the same few labels"
    _draw_comparison(image, truth, predictions, spacing, title, folders.home / _PICTURE)


def _read_volume(file: Path) -> tuple[Volume, tuple[float, float, float]]:
    """A NIfTI volume (Z, Y, X) and its voxel size (z, y, x) in mm."""
    import SimpleITK as sitk

    image = sitk.ReadImage(str(file))
    x, y, z = image.GetSpacing()
    return sitk.GetArrayFromImage(image), (z, y, x)


def _draw_comparison(
    image: Volume,
    truth: Volume,
    predictions: Mapping[str, Volume],
    spacing: tuple[float, float, float],
    title: str,
    file: Path,
) -> None:
    """Draw an axial and a coronal slice of the image (Z, Y, X) in HU, the truth, and every prediction by its title."""
    from matplotlib.patches import Patch

    columns: dict[str, Volume | None] = {"scan": None, "truth": truth, **predictions}
    slices = [_fullest(truth, axis) for axis in (0, 1)]
    depth, height, width = (n * s for n, s in zip(truth.shape, spacing, strict=True))
    figure = new_figure(3.2 * len(columns), 3.2 * (height + depth) / width + 1.0)
    rows = figure.subplots(2, len(columns), squeeze=False, height_ratios=[height, depth])
    for axis, (row, index) in enumerate(zip(rows, slices, strict=True)):
        aspect = (spacing[1] if axis == 0 else spacing[0]) / spacing[2]
        for panel, (name, labels) in zip(row, columns.items(), strict=True):
            _draw_scan(panel, image.take(index, axis), None if labels is None else labels.take(index, axis), aspect)
            if axis == 0:
                panel.set_title(name, fontsize=11)
            else:
                panel.invert_yaxis()  # the head is up
    patches = [Patch(color=COLOURS[n - 1], label=organ.replace("_", " ")) for organ, n in LABELS.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)
    figure.suptitle(title)
    save_figure(figure, file)


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
