"""Dice of every organ with the pretrained and with the random network: as a table, a file and a picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, stdev

from nnssl.core import escape
from nnssl.core.json_files import read_json
from nnssl.core.own_files import SummaryFile
from nnssl.demo.anatomy import LABELS
from nnssl.demo.picture import draw_comparison, read_volume
from nnssl.demo.steps import Folders
from nnssl.errors import UserError

ALL = "mean"
_AGAIN = "delete the demo's folder and run the demo again"
_REPORT, _TABLE, _PICTURE = "report.md", "dice.csv", "comparison.png"


@dataclass(frozen=True)
class Score:
    """Dice of one organ, mean over the test scans, with one backbone of one seed."""

    seed: int
    backbone: str
    organ: str
    dice: float


def read_scores(summary: Path, seed: int, backbone: str) -> list[Score]:
    """Scores in a summary.json of nnU-Net's evaluation, organ by organ, and their mean as the organ `mean`.

    Raises:
        UserError: the evaluation is missing.
    """
    dice = read_json(summary, SummaryFile, _AGAIN).get("mean", {})
    if missing := [organ for organ, label in LABELS.items() if "Dice" not in dice.get(str(label), {})]:
        raise UserError(f"{summary} has no Dice of {', '.join(missing)}; {_AGAIN}")
    scores = [Score(seed, backbone, organ, float(dice[str(label)]["Dice"])) for organ, label in LABELS.items()]
    return [*scores, Score(seed, backbone, ALL, mean(s.dice for s in scores))]


def case_dice(summary: Path) -> dict[str, float]:
    """Mean Dice over the organs of every test case, in a summary.json."""
    cases = read_json(summary, SummaryFile, _AGAIN)["metric_per_case"]
    return {
        Path(case["prediction_file"]).name.split(".")[0]: mean(m["Dice"] for m in case["metrics"].values())
        for case in cases
    }


def table(scores: Iterable[Score], backbones: Sequence[str]) -> list[list[str]]:
    """Rows of text, headings first: organ, Dice of both backbones, and how far the first is ahead of the second.

    With several seeds every number is a mean over them, ± their standard deviation.
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
    """A table in Markdown whose columns are aligned for reading as plain text."""
    rows = [[escape.markdown(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def remove_report(home: Path) -> None:
    """Remove what `write_report` writes."""
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
        folders: of the seed whose predictions are drawn.
        scores: of all seeds.
        backbones: the pretrained one and the random one.
        caption: of the table.
        commands: that were run, with their seconds.

    Returns:
        The table with its caption, and where the files are.
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
    """The test scan whose Dice with pretraining is the median one."""
    pretrained, _ = backbones
    dice = {backbone: case_dice(folders.summary(backbone)) for backbone in backbones}
    middle = median(dice[pretrained].values())
    case = min(dice[pretrained], key=lambda name: abs(dice[pretrained][name] - middle))
    weights = (f"pretrained with {pretrained}", "random weights")
    predictions = {
        f"{name}: Dice {dice[backbone][case]:.2f}": read_volume(folders.predictions(backbone) / f"{case}.nii.gz")[0]
        for backbone, name in zip(backbones, weights, strict=True)
    }
    image, spacing = read_volume(folders.images / f"{case}_0000.nii.gz")
    truth, _ = read_volume(folders.truth / f"{case}.nii.gz")
    title = f"Test scan {case}: linear heads on two frozen networks, trained with the same few labels"
    draw_comparison(image, truth, predictions, spacing, title, folders.home / _PICTURE)
