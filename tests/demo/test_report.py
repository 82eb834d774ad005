from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnssl.demo.anatomy import LABELS
from nnssl.demo.gain import CaseDice, Gain
from nnssl.demo.report import Score, all_scores, markdown, remove_report, scores_of, table, write_report
from nnssl.demo.steps import Folders

METHOD = "vox2vec"


def _dice(**scans: float) -> CaseDice:
    """Test scans whose organs have one Dice, but for the aorta."""
    return {scan: {organ: value + 0.06 * (organ == "aorta") for organ in LABELS} for scan, value in scans.items()}


def _scores(value: float, seed: int, backbone: str) -> list[Score]:
    return [Score(seed, backbone, organ, value) for organ in (*LABELS, "mean")]


def test_scores_of__organs_and_their_mean() -> None:
    scores = {score.organ: score.dice for score in scores_of(_dice(a=0.2, b=0.4), 0, METHOD)}
    assert list(scores) == [*LABELS, "mean"]
    assert scores["liver"] == pytest.approx(0.3) and scores["aorta"] == pytest.approx(0.36)
    assert scores["mean"] == pytest.approx(np.mean([scores[organ] for organ in LABELS]))


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
    return folders


def _write(file: Path, array: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((3.0, 3.0, 4.0))
    sitk.WriteImage(image, str(file))


def test_write_report__table_csv_picture_and_sentence(folders: Folders) -> None:
    from matplotlib.image import imread

    gain = Gain(METHOD, 3, [_dice(a=0.9, b=0.5, c=0.1)], [_dice(a=0.0, b=0.25, c=0.0)])
    text = write_report(folders, gain, all_scores(gain, [0]), "Dice", "It fits", [("nnssl_pretrain -d 500", 12.3)])
    report = (folders.home / "report.md").read_text()
    assert "| spleen" in text and "| spleen" in report and "12.3 s  nnssl_pretrain -d 500" in report
    assert "comparison.png" in report and "It fits." in report and gain.sentence in report
    assert text.splitlines()[-2:] == [f"picture: {folders.home / 'comparison.png'}", gain.sentence]
    lines = (folders.home / "dice.csv").read_text().splitlines()
    assert lines[0] == "seed,backbone,organ,dice" and len(lines) == 1 + 2 * 7
    assert lines[1] == "0,vox2vec,liver,0.5000"
    picture = imread(folders.home / "comparison.png")
    assert picture.shape[1] == 900 and picture[..., :3].std() > 0.1
    # Okabe and Ito's blue, of the liver, on the picture
    assert (np.abs(picture[..., :3] - np.array([0, 0x72, 0xB2]) / 255).max(-1) < 0.02).sum() > 50
    remove_report(folders.home)
    assert not [f for f in folders.home.iterdir() if f.is_file()]
