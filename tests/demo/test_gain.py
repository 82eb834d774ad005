from __future__ import annotations

import json
from pathlib import Path

import pytest

from nnssl.core.errors import UserError
from nnssl.demo.anatomy import LABELS
from nnssl.demo.gain import CaseDice, Gain, case_dice, text


def _scans(*values: float) -> CaseDice:
    return {f"organs_{i:03d}": dict.fromkeys(LABELS, value) for i, value in enumerate(values)}


def test_case_dice__every_organ_of_every_scan(tmp_path: Path) -> None:
    metrics = {str(n): {"Dice": n / 10} for n in LABELS.values()}
    content = {"metric_per_case": [{"prediction_file": "/p/organs_004.nii.gz", "metrics": metrics}]}
    (tmp_path / "summary.json").write_text(json.dumps(content))
    assert case_dice(tmp_path / "summary.json") == {"organs_004": {organ: n / 10 for organ, n in LABELS.items()}}


def test_case_dice__missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"summary\.json is missing"):
        case_dice(tmp_path / "summary.json")
    content = {"metric_per_case": [{"prediction_file": "a.nii.gz", "metrics": {"1": {"Dice": 0.5}}}]}
    (tmp_path / "summary.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="no Dice of spleen"):
        case_dice(tmp_path / "summary.json")


def test_text__short_with_a_spread_over_seeds() -> None:
    assert text([0.614]) == ".61" and text([0.39], "+") == "+.39" and text([-0.01], "+") == "-.01"
    assert text([0.4, 0.6]) == ".50 ± .14" and text([1.0]) == "1.00"


def test_sentence__one_seed() -> None:
    gain = Gain("vox2vec", 3, [_scans(0.6, 0.7)], [_scans(0.2, 0.3)])
    assert gain.sentence == (
        "With 3 labelled scans the network pretrained with vox2vec reaches a mean Dice of .65, random weights .25: "
        "+.40 on 2 test scans, ahead on 2 of 2."
    )
    assert gain.title == "vox2vec gains +.40 mean Dice: .65 against .25 from random weights"


def test_sentence__several_seeds_with_their_spread() -> None:
    gain = Gain("voco", 3, [_scans(0.6, 0.7), _scans(0.7, 0.8)], [_scans(0.2, 0.3), _scans(0.4, 0.3)])
    assert ".70 ± .07" in gain.sentence and "2 test scans in 2 seeds, ahead on 4 of 4" in gain.sentence
    assert gain.leads == pytest.approx([0.4, 0.4])


@pytest.mark.parametrize(
    ("pretrained", "random", "lead"),
    [
        ((0.3, 0.4), (0.3, 0.4), "+.00"),
        ((0.31, 0.41), (0.3, 0.4), "+.01"),  # on every scan, but by less than two trainings differ
        ((0.9, 0.2), (0.3, 0.3), "+.25"),  # on one of two scans
        ((0.3, 0.3), (0.4, 0.4), "-.10"),
    ],
)
def test_sentence__no_gain_is_said_plainly(pretrained: tuple[float, ...], random: tuple[float, ...], lead: str) -> None:
    gain = Gain("sam", 3, [_scans(*pretrained)], [_scans(*random)])
    assert not gain.is_shown and gain.sentence.startswith("No gain in this size: with 3") and lead in gain.sentence
    assert "no gain" in gain.title and lead in gain.title


def test_is_shown__every_seed_must_be_ahead() -> None:
    good, bad = _scans(*[0.6] * 8), _scans(*[0.2] * 8)
    assert Gain("mae", 3, [good, good], [bad, bad]).is_shown
    assert not Gain("mae", 3, [good, bad], [bad, _scans(*[0.21] * 8)]).is_shown
