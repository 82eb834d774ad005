from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnssl.benchmarking import scan_labels
from nnssl.benchmarking.scan_labels import _enough, benchmark_scan_labels, ordered
from nnssl.benchmarking.subsets import Amount
from nnssl.classification.question import Question
from nnssl.classification.splits import folds_of
from nnssl.cli.benchmark import main
from tests.classification.data import target_of


def test_ordered__is_nested_begins_with_every_class_and_keeps_the_shares() -> None:
    target = target_of([0] * 30 + [1] * 10 + [2] * 2, ["a", "b", "c"])
    order = ordered(target, target.cases, seed=1)
    assert sorted(order) == list(target.cases) and order != ordered(target, target.cases, seed=2)
    assert set(target.of(order[:3])) == {0, 1, 2}
    half = target.of(order[:21]).tolist()
    assert 13 <= half.count(0) <= 17 and 4 <= half.count(1) <= 7


def test_benchmark_scan_labels__more_labels_tell_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = target_of([0, 1] * 30, ["no", "yes"])
    rng = np.random.default_rng(0)
    good = {
        case: rng.normal(size=12) + np.eye(12)[0] * 2 * value
        for case, value in zip(target.cases, target.values, strict=True)
    }
    noise = {case: rng.normal(size=12) for case in target.cases}
    folds, file = folds_of(target, tmp_path / "home", 2, 0)
    question = Question("Dataset600_Scans", tmp_path, target, folds, file, tmp_path)

    class Found:
        def __init__(self, of_case: Any) -> None:
            self.of_case = of_case

    monkeypatch.setattr(scan_labels, "ask", lambda *_: question)
    monkeypatch.setattr(scan_labels, "open_run", lambda path: path)
    monkeypatch.setattr(scan_labels, "vectors_of", lambda run, *_: Found(good if run == "a.pth" else noise))
    made = benchmark_scan_labels(600, ["good=a.pth", "noise=b.pth"], tmp_path / "out", "grade", [5, 100], 1, "cpu")
    assert made is not None
    few, all_ = ([np.mean(made.values(name, amount, "auroc")) for name in ("good", "noise")] for amount in made.amounts)
    assert all_[0] > 0.75 and all_[0] > few[0] and abs(all_[1] - 0.5) < 0.2
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "labels.csv",
        "labels.json",
        "labels.md",
        "labels.png",
    }
    table = (tmp_path / "out/labels.md").read_text().splitlines()
    assert table[0].startswith("| AUROC of grade | 2 cases (5 %) | 30 cases (100 %) |")


def test_enough__a_case_of_each_class_is_said_to_be_used(caplog: pytest.LogCaptureFixture) -> None:
    target = target_of([0, 1, 2] * 3, ["a", "b", "c"])
    made = _enough([Amount(1, 5.0), Amount(3, 20.0), Amount(9, 100.0)], target)
    assert made == [Amount(3, 20.0), Amount(9, 100.0)] and "5 %" in caplog.text


def test_main__target_needs_models(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["-d", "600", "-target", "covid", "-o", "out"])
    assert "-target and -m belong together" in capsys.readouterr().err
