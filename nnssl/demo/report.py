"""Dice of every organ with the pretrained and with the random network, as a table and a file, with the picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from nnssl.core import names as escape
from nnssl.demo.anatomy import LABELS
from nnssl.demo.gain import CaseDice, Gain
from nnssl.demo.picture import ALL, draw_comparison
from nnssl.demo.steps import RANDOM, Folders

_REPORT, _TABLE, _PICTURE = "report.md", "dice.csv", "comparison.png"


@dataclass(frozen=True)
class Score:
    """Dice of one organ: mean over the test scans, for one backbone and seed."""

    seed: int
    backbone: str
    organ: str
    dice: float


def scores_of(dice: CaseDice, seed: int, backbone: str) -> list[Score]:
    """The mean over the test scans, organ by organ, and the mean of these as the organ `mean`."""
    scores = [Score(seed, backbone, organ, mean(scan[organ] for scan in dice.values())) for organ in LABELS]
    return [*scores, Score(seed, backbone, ALL, mean(s.dice for s in scores))]


def all_scores(gain: Gain, seeds: Sequence[int]) -> list[Score]:
    """Scores of all seeds: first those of the pretraining, then those of random weights."""
    return [
        score
        for seed, *both in zip(seeds, gain.pretrained, gain.random, strict=True)
        for backbone, dice in zip((gain.method, RANDOM), both, strict=True)
        for score in scores_of(dice, seed, backbone)
    ]


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
    folders: Folders, gain: Gain, scores: Sequence[Score], caption: str, why: str, commands: Sequence[tuple[str, float]]
) -> str:
    """Write report.md, dice.csv (one line a score) and comparison.png into the demo's folder.

    Args:
        folders: of the first seed, whose predictions the picture shows.
        gain: what both trainings reached.
        scores: of all seeds.
        caption: of the table.
        why: the reason for this kind of training, a sentence.
        commands: commands that ran, with their seconds.

    Returns:
        The table with its caption, the paths of the files, and the sentence that says what was gained.
    """
    home, setting, seeds = folders.home, caption, sorted({score.seed for score in scores})
    if len(seeds) > 1:
        caption += f"; mean ± standard deviation over the seeds {', '.join(map(str, seeds))}"
    lines = [[s.seed, s.backbone, s.organ, f"{s.dice:.4f}"] for s in scores]
    (home / _TABLE).write_text(escape.csv_table(["seed", "backbone", "organ", "dice"], lines), newline="")
    draw_comparison(folders, gain, setting, home / _PICTURE)
    rows = markdown(table(scores, (gain.method, RANDOM)))
    ran = "\n".join(f"    {seconds:6.1f} s  {line}" for line, seconds in commands)
    (home / _REPORT).write_text(f"# nnssl demo: {gain.method}\n\n**{gain.sentence}**\n\n{why[0].upper()}{why[1:]}.\n\n"
                                f"![Slices of a test scan, and the Dice of all test scans]({_PICTURE})\n\n"
                                f"{caption}:\n\n{rows}\n\n## What ran\n\n{ran}\n")  # fmt: skip
    return f"{caption}:\n\n{rows}\n\nreport: {home / _REPORT}\npicture: {home / _PICTURE}\n{gain.sentence}"
