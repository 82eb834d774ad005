from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.evaluation.evaluate_predictions import load_summary_json, save_summary_json

from nnssl.data.annotated_labels import read_annotated_labels
from nnssl.finetuning.partial_labels import annotated_summary, hard_counts


def _logits(of: list[list[int]], classes: int) -> torch.Tensor:
    """(B, classes, voxels) logits of a network that is sure of these labels."""
    return 9 * torch.nn.functional.one_hot(torch.tensor(of), classes).movedim(-1, 1).float()


def test_hard_counts__labels_with_ignored_voxels() -> None:
    output = _logits([[1, 1, 2, 0, 2], [2, 2, 1, 0, 1]], 3)
    target = torch.tensor([[[1, 0, 2, 2, 3]], [[0, 2, 1, 1, 3]]])
    kept = target.clone()
    annotated = torch.tensor([[True, True, True], [True, True, False]])
    counts = {name: values.tolist() for name, values in hard_counts(output, target, annotated, False, 3).items()}
    assert counts == {"tp_hard": [2, 1], "fp_hard": [1, 0], "fn_hard": [1, 1]}  # class 2 in the first case alone
    assert torch.equal(target, kept)


@pytest.mark.parametrize("ignore", [None, 7])
def test_hard_counts__regions(ignore: int | None) -> None:
    output = torch.tensor([[[1.0, -1.0, 2.0], [3.0, 3.0, -3.0]]] * 2)
    target = torch.tensor([[[True, True, False], [True, False, False]]] * 2)
    if ignore is not None:
        target = torch.cat([target, torch.tensor([[[False, False, True]]] * 2)], 1)
    counts = hard_counts(output, target, torch.tensor([[True, True], [False, True]]), True, ignore)
    false_positives = [1 if ignore is None else 0, 2]
    expected = {"tp_hard": [1, 2], "fp_hard": false_positives, "fn_hard": [1, 0]}
    assert {name: values.tolist() for name, values in counts.items()} == expected


def _summary(cases: dict[str, dict[Any, float]]) -> dict[str, Any]:
    """As nnU-Net writes it, of two metrics."""
    of_case = [
        {"reference_file": f"/gt/{case}.nii.gz", "prediction_file": f"/p/{case}.nii.gz",
         "metrics": {which: {"Dice": dice, "FP": 3} for which, dice in scores.items()}}
        for case, scores in cases.items()
    ]  # fmt: skip
    nothing = {"Dice": 0.0, "FP": 0.0}
    return {
        "metric_per_case": of_case,
        "mean": dict.fromkeys(of_case[0]["metrics"], nothing),
        "foreground_mean": nothing,
    }


def test_annotated_summary__takes_means_where_annotated(tmp_path: Path) -> None:
    labels = {"background": 0, "both": [1, 2], "tip": 2, "rest": 3}
    content = {"labels": labels, "annotated_labels": {"b.1": ["both"], "c": []}}
    annotations = read_annotated_labels(content, tmp_path)
    scores = {"a": {(1, 2): 0.5, 2: math.nan}, "b.1": {(1, 2): 0.7, 2: 0.0}, "c": {(1, 2): 0.1, 2: 0.2}}
    file = str(tmp_path / "summary.json")
    save_summary_json(annotated_summary(_summary(scores), annotations, ".nii.gz"), file)
    summary = load_summary_json(file)
    assert summary["mean"][(1, 2)] == {"Dice": pytest.approx(0.6), "FP": 3}
    assert math.isnan(summary["mean"][2]["Dice"]) and summary["mean"][2]["FP"] == 3
    assert summary["foreground_mean"] == {"Dice": pytest.approx(0.6), "FP": 3}
    kept = [[not math.isnan(m["FP"]) for m in entry["metrics"].values()] for entry in summary["metric_per_case"]]
    assert kept == [[True, True], [True, False], [False, False]]
    assert json.loads(Path(file).read_text())["metric_per_case"][0]["prediction_file"] == "/p/a.nii.gz"
