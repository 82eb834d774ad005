from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnssl.core.errors import UserError
from nnssl.demo.anatomy import LABELS
from nnssl.demo.report import Score, case_dice, markdown, read_scores, remove_report, table, write_report
from nnssl.demo.steps import Folders

METHOD = "vox2vec"


def _summary(file: Path, dice: dict[str, float]) -> None:
    """As nnU-Net's evaluation writes it; every organ of a case has the case's Dice."""
    cases = [
        {"prediction_file": f"/p/{case}.nii.gz", "metrics": {str(n): {"Dice": value} for n in LABELS.values()}}
        for case, value in dice.items()
    ]
    mean = float(np.mean(list(dice.values())))
    content = {"metric_per_case": cases, "mean": {str(n): {"Dice": mean + n / 100} for n in LABELS.values()}}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def _scores(value: float, seed: int, backbone: str) -> list[Score]:
    return [Score(seed, backbone, organ, value) for organ in (*LABELS, "mean")]


def test_read_scores__organs_and_their_mean(tmp_path: Path) -> None:
    _summary(tmp_path / "summary.json", {"a": 0.2, "b": 0.4})
    scores = {score.organ: score.dice for score in read_scores(tmp_path / "summary.json", 0, METHOD)}
    assert list(scores) == [*LABELS, "mean"]
    assert scores["liver"] == pytest.approx(0.31) and scores["aorta"] == pytest.approx(0.36)
    assert scores["mean"] == pytest.approx(np.mean([scores[organ] for organ in LABELS]))
    assert case_dice(tmp_path / "summary.json") == pytest.approx({"a": 0.2, "b": 0.4})


def test_read_scores__missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"summary\.json is missing"):
        read_scores(tmp_path / "summary.json", 0, METHOD)


def test_table__one_seed() -> None:
    rows = table([*_scores(0.5, 0, METHOD), *_scores(0.125, 0, "random")], (METHOD, "random"))
    assert rows[0] == ["organ", "vox2vec", "random", "ahead by"]
    assert rows[1] == ["liver", "0.500", "0.125", "+0.375"]
    assert [row[0] for row in rows[1:]] == [
        "liver",
        "spleen",
        "right kidney",
        "left kidney",
        "stomach",
        "aorta",
        "mean",
    ]


def test_table__over_seeds_the_lead_is_paired() -> None:
    scores = [s for seed, base in ((0, 0.1), (1, 0.3)) for s in
              (*_scores(base + 0.4, seed, METHOD), *_scores(base, seed, "random"))]  # fmt: skip
    assert table(scores, (METHOD, "random"))[-1] == ["mean", "0.600 ± 0.141", "0.200 ± 0.141", "+0.400 ± 0.000"]


def test_table__a_behind_has_its_sign() -> None:
    assert table([*_scores(0.1, 0, METHOD), *_scores(0.2, 0, "random")], (METHOD, "random"))[1][3] == "-0.100"


def test_markdown__aligned() -> None:
    lines = markdown([["organ", "a"], ["left kidney", "0.1"]]).splitlines()
    assert lines == ["| organ       | a   |", "|-------------|-----|", "| left kidney | 0.1 |"]
    assert markdown([["a|b"], ["<x> 1"]]).splitlines() == [r"| a\|b        |", "|-------------|", "| &lt;x&gt; 1 |"]


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """Three small test scans whose prediction is the truth with pretraining and nothing without."""
    folders = Folders(tmp_path)
    rng = np.random.default_rng(0)
    for case in ("a", "b", "c"):
        labels = rng.integers(0, 7, (4, 12, 16)).astype(np.uint8).repeat(2, 0)
        _write(folders.images / f"{case}_0000.nii.gz", (labels * 40 - 100).astype(np.int16))
        _write(folders.truth / f"{case}.nii.gz", labels)
        _write(folders.predictions(METHOD) / f"{case}.nii.gz", labels)
        _write(folders.predictions("random") / f"{case}.nii.gz", 0 * labels)
    _summary(folders.summary(METHOD), {"a": 0.9, "b": 0.5, "c": 0.1})
    _summary(folders.summary("random"), {"a": 0.0, "b": 0.25, "c": 0.0})
    return folders


def _write(file: Path, array: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((3.0, 3.0, 4.0))
    sitk.WriteImage(image, str(file))


def test_write_report__table_csv_and_picture(folders: Folders) -> None:
    from matplotlib.image import imread

    scores = [s for b in (METHOD, "random") for s in read_scores(folders.summary(b), 0, b)]
    text = write_report(folders, scores, (METHOD, "random"), "Dice", [("nnssl_pretrain -d 500", 12.3)])
    report = (folders.home / "report.md").read_text()
    assert "| spleen" in text and "| spleen" in report and "12.3 s  nnssl_pretrain -d 500" in report
    assert "comparison.png" in report
    lines = (folders.home / "dice.csv").read_text().splitlines()
    assert lines[0] == "seed,backbone,organ,dice" and len(lines) == 1 + 2 * 7
    assert lines[1] == "0,vox2vec,liver,0.5100"
    picture = imread(folders.home / "comparison.png")
    assert picture.shape[1] > 1000 and picture[..., :3].std() > 0.1
    # Okabe and Ito's blue, of the liver, on the picture
    assert (np.abs(picture[..., :3] - np.array([0, 0x72, 0xB2]) / 255).max(-1) < 0.02).sum() > 50
    remove_report(folders.home)
    assert not [f for f in folders.home.iterdir() if f.is_file()]
