from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nnssl
from nnssl.benchmarking.case_scores import Score, Structure
from nnssl.benchmarking.evaluation_report import Evaluation, read_evaluation, write_evaluation
from nnssl.core.errors import UserError
from tests.benchmarking.labels import cube, describe, write_labels


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Case a: the liver is off by a voxel of 3 mm, no spleen anywhere; case b: the liver is right, the spleen lost."""
    truth, predicted = tmp_path / "truth", tmp_path / "predicted"
    describe(predicted)
    write_labels(truth / "a.nii.gz", cube())
    write_labels(predicted / "a.nii.gz", cube(at=(5, 4, 4)))
    write_labels(truth / "b.nii.gz", cube() + cube(2, (4, 4, 11)))
    write_labels(predicted / "b.nii.gz", cube())
    return truth, predicted


def test_evaluate__files_beside_nnunets_own(folders: tuple[Path, Path], caplog: pytest.LogCaptureFixture) -> None:
    found = nnssl.evaluate(*folders, tolerance=["2", "spleen=5"], num_processes=1)
    assert "only 2 cases: with fewer than 8 " in caplog.text
    moved = 5 / 6
    assert found.table("dice").tolist() == [[moved, 1.0], [1.0, 0.0]]
    (a_liver, a_spleen), b = found.table("nsd")
    assert 0 < a_liver < 0.9 and a_spleen == 1 and b.tolist() == [1, 0]
    summary = found.summary()
    assert summary["mean"]["dice"] == pytest.approx(((moved + 1) / 2 + 0.5) / 2)
    assert summary["liver"]["dice_sd"] == pytest.approx(np.std([moved, 1], ddof=1))

    own = json.loads((folders[1] / "summary.json").read_text())
    assert own["mean"]["1"]["Dice"] == pytest.approx(summary["liver"]["dice"])
    content = json.loads((folders[1] / "nnssl_evaluation.json").read_text())
    assert content["tolerance_mm"] == {"liver": 2, "spleen": 5} and content["absent"] == "flare"
    assert content["cases"]["b"]["spleen"] == {"dice": 0, "nsd": 0, "reference_voxels": 216, "predicted_voxels": 0}
    rows = list(csv.DictReader((folders[1] / "nnssl_evaluation.csv").open()))
    assert [(r["case"], r["structure"]) for r in rows] == [
        ("a", "liver"),
        ("a", "spleen"),
        ("b", "liver"),
        ("b", "spleen"),
    ]
    assert rows[0]["dice"] == f"{moved:.6f}" and not list(folders[1].glob(".*"))
    assert read_evaluation(folders[1] / "nnssl_evaluation.json") == found


def test_write_evaluation__of_labels_and_cases_with_odd_names(tmp_path: Path) -> None:
    names, cases = ("a|b", "=cmd()", "-x_1&2%"), ("@x", 'say "hi", twice')
    structures = [Structure(name, number, 2.0) for number, name in enumerate(names, start=1)]
    scores = [Score(case, name, 0.5, math.nan, 3, 2) for case in cases for name in names]
    evaluation = Evaluation(structures, "flare", scores)
    write_evaluation(evaluation, tmp_path)
    rows = list(csv.DictReader((tmp_path / "nnssl_evaluation.csv").open()))
    shown = ["a|b", "'=cmd()", "'-x_1&2%"]
    assert [(row["case"], row["structure"]) for row in rows] == [
        (case, name) for case in ("'@x", 'say "hi", twice') for name in shown
    ]
    assert read_evaluation(tmp_path / "nnssl_evaluation.json").cases == sorted(cases)  # for programs, as they are


def test_evaluate__tolerance_and_spacing_of_the_right_axis(folders: tuple[Path, Path]) -> None:
    assert nnssl.evaluate(*folders, tolerance=[3], num_processes=1).table("nsd")[0, 0] == 1
    assert nnssl.evaluate(*folders, tolerance=[2.9], num_processes=1).table("nsd")[0, 0] < 1


def test_evaluate__absent_structures_left_out_as_nnunet_does(folders: tuple[Path, Path], tmp_path: Path) -> None:
    found = nnssl.evaluate(*folders, absent="exclude", output=tmp_path / "out", num_processes=2)
    assert math.isnan(found.table("dice")[0, 1]) and found.summary()["spleen"]["dice"] == 0
    own = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert own["mean"]["2"]["Dice"] == 0 and own["foreground_mean"]["Dice"] == pytest.approx((5 / 6 + 1) / 4)
    again = read_evaluation(tmp_path / "out" / "nnssl_evaluation.json")
    assert math.isnan(again.scores[1].nsd) and not (folders[1] / "summary.json").exists()


def test_evaluate__regions_and_ignored_voxels(tmp_path: Path) -> None:
    labels = {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3}
    describe(tmp_path / "p", labels=labels, regions_class_order=[1, 2])
    truth, predicted = cube(1), cube(1)
    truth[5:7, 5:7, 5:7] = predicted[5:7, 5:7, 5:7] = 2
    predicted[12:] = 1
    truth[12:] = 3
    write_labels(tmp_path / "t" / "a.nii.gz", truth)
    write_labels(tmp_path / "p" / "a.nii.gz", predicted)
    found = nnssl.evaluate(tmp_path / "t", tmp_path / "p", num_processes=1)
    assert [(s.structure, s.dice, s.nsd, s.reference_voxels) for s in found.scores] == [
        ("whole", 1, 1, 216), ("core", 1, 1, 8)]  # fmt: skip


def _break(folders: tuple[Path, Path], how: str) -> None:
    truth, predicted = folders
    file = predicted / "b.nii.gz"
    if how == "missing":
        file.unlink()
    elif how == "unknown":
        (truth / "b.nii.gz").unlink()
    elif how == "size":
        write_labels(file, cube()[:-1])
    elif how == "spacing":
        write_labels(file, cube(), (3.0, 1.0, 0.6))
    elif how == "origin":
        write_labels(file, cube(), origin=1.0)
    elif how == "label":
        write_labels(file, cube(7))
    elif how == "file":
        file.write_bytes(b"nothing")
    elif how == "text":
        (predicted / "dataset.json").write_bytes(b"\xff\xfe {")
    elif how == "swapped":
        (predicted / "plans.json").write_bytes((predicted / "dataset.json").read_bytes())
    else:
        (predicted / "plans.json").unlink()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("missing", "1 references have no prediction in .*: b; predict them too"),
        ("unknown", "1 predictions have no reference in .*: b; remove them"),
        ("size", "18 x 16 x 13 voxels and .* has 18 x 16 x 14; resample the prediction of b"),
        ("spacing", "another spacing, origin or direction"),
        ("origin", "another spacing, origin or direction"),
        ("label", "the labels 7, .*-djfile"),
        ("file", "b.nii.gz cannot be read"),
        ("text", "predicted/dataset.json .*valid JSON.* -djfile"),
        ("swapped", "predicted/plans.json.* plans_name.* -pfile"),
        ("plans", "no plans.json beside the predictions in .* with -pfile"),
    ],
)
def test_evaluate__mistakes(folders: tuple[Path, Path], how: str, words: str) -> None:
    _break(folders, how)
    with pytest.raises(UserError, match=words):
        nnssl.evaluate(*folders, num_processes=1)
    assert not (folders[1] / "nnssl_evaluation.json").exists()


def test_evaluate__no_folder_of_predictions(folders: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*predictet; name the folder of the true labels"):
        nnssl.evaluate(folders[0], folders[1].with_name("predictet"), num_processes=1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_processes": 0}, "use -np 1 or more"),
        ({"output": __file__}, "is a file; -o takes a folder"),
    ],
)
def test_evaluate__wrong_options(folders: tuple[Path, Path], options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        nnssl.evaluate(*folders, **options)
    assert not (folders[1] / "nnssl_evaluation.json").exists()


def test_evaluate__chill_leaves_out_what_is_missing(folders: tuple[Path, Path]) -> None:
    _break(folders, "missing")
    assert nnssl.evaluate(*folders, chill=True, num_processes=1).cases == ["a"]
