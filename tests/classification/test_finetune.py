from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from nnssl.checkpoints.files import FINAL, load_checkpoint
from nnssl.checkpoints.pretrained import read_pretrained
from nnssl.classification import finetune
from nnssl.classification.classify import classify
from nnssl.classification.finetune import Job
from nnssl.classification.model import load_classifier
from nnssl.classification.predict import classify_predict
from nnssl.classification.splits import Fold
from nnssl.classification.volumes import prepare_as
from nnssl.core.errors import UserError
from nnssl.core.files import write_json
from nnssl.pretraining import memory
from nnssl.pretraining.launch import launch
from nnssl.pretraining.loop import Pretraining
from nnssl.pretraining.setup import Setup
from tests.cards import pretends_a_card
from tests.classification.data import target_of
from tests.runs import same_content

OPTIONS = ["num_epochs=2", "batch_size=2", "learning_rate=1e-2", "save_every_epochs=1"]


def _train(run: Path, output: Path, options: Sequence[str] = (), **others: Any) -> Path:
    return classify(600, run, "look", finetune=True, folds=2, fold=[0], output=output, options=[*OPTIONS, *options],
                    device="cpu", num_processes=1, **others).folder  # fmt: skip


def test_classify__finetuned_then_interrupted_continued_predicted_and_exported(
    world: Path, run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "nnssl")
    monkeypatch.setattr(finetune, "peak_gib", lambda *_: 0.1)
    monkeypatch.setattr(memory, "rehearse", None)
    sentences: list[str] = []

    def ask_and_launch(setup: Setup, *rest: Any) -> None:
        sentences.append(memory.what_would_fit(setup))
        launch(setup, *rest)

    monkeypatch.setattr(finetune, "launch", ask_and_launch)
    whole = _train(run, world / "whole")
    assert {file.name for file in (whole / "fold_0").iterdir()} == {
        "checkpoint_final.pth", "config.json", "dataset.json", "metrics.jsonl", "model.pth", "plans.json",
        "pretraining_log.txt", "progress.png", "summary.json", "views.png",
    }  # fmt: skip
    content = json.loads((whole / "results.json").read_text())
    assert content["predictions"]["fine-tuned"]["cases"] == 5 and set(content["predictions"]) == {
        "fine-tuned",
        "class shares",
    }
    log = (whole / "fold_0/pretraining_log.txt").read_text()
    assert "--overwrite -set batch_size=" in sentences[0]
    assert "whole volumes of 16,24,24 voxels" in log and "loaded:" in log and "collapsing" not in log
    with pytest.raises(UserError, match="finished run"):
        _train(run, world / "whole")

    finish = Pretraining._finish_epoch

    def stop(self: Pretraining) -> None:
        finish(self)
        if self.epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Pretraining, "_finish_epoch", stop)
        _train(run, world / "parts", ["patch_size=16,24,24"])  # what the whole run has chosen
    with pytest.raises(UserError, match=r"learning_rate \(0.01 -> 1.0\)"):
        classify(600, run, "look", finetune=True, fold=[0], output=world / "parts", options=["learning_rate=1"],
                 continue_run=True, device="cpu")  # fmt: skip
    (world / "parts/fold_0/model.pth").write_bytes(b"of a run whose removal was interrupted")
    parts = _train(run, world / "parts", continue_run=True)
    first, second = (load_checkpoint(folder / "fold_0/model.pth") for folder in (whole, parts))
    assert same_content(first["method_state"], second["method_state"])

    images = world / "raw/Dataset600_Scans/imagesTr"
    with open(whole / "predictions.csv") as opened:
        tested = {row["case"]: float(row["fine-tuned: dark"]) for row in csv.DictReader(opened)}
    assert len(tested) == 5
    for case, probability in list(tested.items())[:1]:  # of a volume preprocessed before, and of its raw image
        made = classify_predict(images / case, world / f"{case}.csv", whole, world / "maps_tuned", device="cpu")
        assert made.values[case][1] == pytest.approx(probability, abs=1e-3)
        assert (world / f"maps_tuned/{case}.png").is_file() and (world / f"maps_tuned/{case}.nii.gz").is_file()

    labels = world / "raw/Dataset600_Scans/labels.csv"
    text = labels.read_text()
    (trained,) = json.loads((whole / "fold_0/config.json").read_text())["held_out_cases"][:1]
    case = trained.split("/")[1]
    changed = {"dark": "bright", "bright": "dark"}
    lines = [",".join(changed.get(cell, cell) for cell in line.split(",")) if line.startswith(case) else line
             for line in text.splitlines()]  # fmt: skip
    try:
        labels.write_text("\n".join(lines))
        with pytest.raises(UserError, match=r"labels or the folds have changed.*-f 0 --overwrite"):
            _train(run, whole, continue_run=True)
    finally:
        labels.write_text(text)


@pytest.mark.slow
@pretends_a_card
def test_train__memory_decides_between_whole_volumes_and_crops(
    world: Path, run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "nnssl")
    folder = _train(run, world / "bound", memory=1e-3)
    said = (folder / "fold_0/pretraining_log.txt").read_text()
    assert "whole volumes of 16,24,24 voxels need about" in said and "crops of 16,32,32" in said
    assert load_classifier(folder / "fold_0/model.pth").model.patch_size == (16, 32, 32)


def test_finished__folds_of_other_labels_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folds = [Fold(0, ("c00", "c01"), ("c02",)), Fold(1, ("c02", "c03"), ("c00",))]
    before, now = target_of([0, 1, 0, 1], ["no", "yes"]), target_of([0, 1, 1, 0], ["no", "yes"])
    jobs = [Job(tmp_path, one, None, None, "random", (), 0, "cpu", None, False, False) for one in (before, now)]
    for fold in folds:
        home = jobs[0].home(fold)
        home.mkdir()
        (home / "model.pth").touch()
        described = {"method": "m", "configuration": "c", "plans": "p", "fold": "0", "options": {}}
        write_json(home / "config.json", {**described, "labels": jobs[0]._fingerprint(fold)})
    assert jobs[0].finished(folds) == folds and not caplog.text
    assert jobs[1].finished(folds) == folds[:1] and "-f 1 --overwrite" in caplog.text


def test_classify__numbers_from_random_weights_of_own_plans_in_crops(world: Path, run: Path) -> None:
    pretrained = read_pretrained(run / "fold_all" / FINAL)
    name = prepare_as(pretrained, "Dataset600_Scans", num_processes=1, allow=False).plans["plans_name"]
    made = classify(600, "random", "level", plans=name, finetune=True, folds=2, fold=[1], device="cpu", memory=1e-6,
                    options=["num_epochs=1", "patch_size=8,16,16"], num_processes=1)  # fmt: skip
    assert made.folder.name == f"classification_level__random_finetuned__{name}__3d_fullres"
    one = load_classifier(made.folder / "fold_1/model.pth")
    assert (one.classes, one.model.patch_size, one.way) == ((), (8, 16, 16), "finetuned")
    assert one.head.weights.shape == (1, one.model.channels[-1])
    assert [rated.kind for rated in made.rated] == ["fine-tuned", "mean"]
