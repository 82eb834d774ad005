from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnssl.benchmarking import scan_labels, workflow
from nnssl.benchmarking.scan_labels import benchmark_scan_labels, ordered
from nnssl.classification.question import Question
from nnssl.classification.results import NAMES
from nnssl.classification.splits import folds_of
from nnssl.cli.benchmark import main
from nnssl.core.errors import UserError
from nnssl.core.files import read_json, write_json
from tests.classification.data import target_of


@pytest.fixture
def question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Question:
    target = target_of([0, 1] * 12, ["no", "yes"])
    folds, file = folds_of(target, tmp_path / "home", 2, 0)
    made = Question("Dataset600_Scans", tmp_path, target, folds, file, tmp_path)
    vectors = {case: np.eye(3)[int(value)] for case, value in zip(target.cases, target.values, strict=True)}

    class Found:
        of_case = vectors

    monkeypatch.setattr(scan_labels, "ask", lambda *_: made)
    monkeypatch.setattr(scan_labels, "open_run", lambda path: path)
    monkeypatch.setattr(scan_labels, "vectors_of", lambda run, *_: Found)
    return made


def _call(out: Path, **more: Any) -> Any:
    return benchmark_scan_labels(600, ["good=a.pth", "noise=random:a.pth"], out, "grade", [5, 100], 1, "cpu",
                                 finetune=True, options=["num_epochs=2"], **more)  # fmt: skip


def test_benchmark_scan_labels__finetunes_each_subset_as_a_command_and_goes_on(
    question: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "nnssl")
    out, typed = tmp_path / "out", list[Sequence[str]]()

    def command(words: Sequence[str], *_: Any) -> int:
        """As `nnssl_classify`; the third one is interrupted once."""
        folder = Path(words[words.index("-o") + 1])
        typed.append(words)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "classification.json", {})
        if len(typed) == 3:
            raise KeyboardInterrupt
        pooled = {name: {"value": 0.75} for name in NAMES}
        write_json(folder / "results.json", {"predictions": {"fine-tuned": {"pooled": pooled}}})
        return 0

    monkeypatch.setattr(workflow, "run_command", command)
    assert _call(out, dry_run=True) is None and not out.exists() and "4 of 4 trainings are left" in caplog.text
    with pytest.raises(KeyboardInterrupt):
        _call(out)
    made = _call(out)
    names = [Path(words[words.index("-o") + 1]).name for words in typed]
    assert names == ["good_4_cases_seed_0", "noise_4_cases_seed_0", "good_12_cases_seed_0", "good_12_cases_seed_0",
                     "noise_12_cases_seed_0"]  # fmt: skip
    assert typed[3][-1] == "--c" and typed[2][-1] == "num_epochs=2" and "random:a.pth" in typed[1]
    splits = read_json(Path(typed[0][typed[0].index("-splits") + 1]))
    for part, fold in zip(splits, question.folds, strict=True):
        assert sorted(part["val"]) == sorted(fold.test) and set(part["train"]) <= set(fold.train)
        assert sorted(question.target.of(part["train"])) == [0, 0, 1, 1]
    assert made.scores["good, fine-tuned", 4, 0]["auroc"] == 0.75 and made.scores["good", 4, 0]["auroc"] == 1
    assert "| noise, fine-tuned | 0.750 | 0.750 |" in (out / "labels.md").read_text()
    with pytest.raises(UserError, match="other options"):
        benchmark_scan_labels(600, ["a=a.pth"], out, "grade", device="cpu", finetune=True)


def test_benchmark_scan_labels__parts_and_what_is_not_finished(
    question: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workflow, "run_command", lambda *_: 1)
    with pytest.raises(UserError, match="some trainings failed"):
        (tmp_path / "logs").mkdir()
        for name in ("good", "noise"):
            (tmp_path / f"logs/{name}_4_cases_seed_0.log").write_text("a reason")
        _call(tmp_path, num_parts=2, part_id=1)
    assert not (tmp_path / "labels.md").exists() and "a reason" in caplog.text
    made = _call(tmp_path, collect_only=True)
    assert {name for name, _, _ in made.scores} == {"good", "noise"} and "4 of 4 fine-tunings" in caplog.text


def test_ordered__two_cases_of_each_class_of_different_groups_first() -> None:
    target = target_of([0] * 20 + [1] * 4, ["a", "b"], ["one"] * 19 + ["two"] + ["c", "c", "c", "d"])
    for seed in range(5):
        first = ordered(target, target.cases, seed, least=2)[:4]
        assert sorted(target.groups_of(first)) == ["c", "d", "one", "two"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("-tr nnUNetTrainer --finetune", "--finetune belongs to -target"),
        ("-target covid -m run -set num_epochs=1", "-set belongs to --finetune"),
        ("-target covid -m run --dry_run", "or add --finetune"),
        ("-target covid -m run --finetune -test 20", "-test is for trainings"),
        ("-target covid -m run --finetune -part_id 2", "-part_id counts from 0 to 0"),
        ("-target covid -m run --finetune -set num_epoch=1", "num_epoch"),
    ],
)
def test_main__flags_that_do_not_go_together(flags: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["-d", "600", "-o", "out", *flags.split()])
    assert said in capsys.readouterr().err
