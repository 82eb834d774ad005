"""Scores of classes where they are annotated: during training, and in the summary of the final validation."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from nnunetv2.training.loss.dice import get_tp_fp_fn_tn
from torch import Tensor

from nnssl.data.annotated_labels import AnnotatedLabels


def hard_counts(
    output: Tensor, target: Tensor, annotated: Tensor, regions: bool, ignore_label: int | None
) -> dict[str, np.ndarray]:
    """Count voxels of foreground classes over the cases of a batch that have them annotated, as nnU-Net's step does.

    Args:
        output: (B, C, ...) logits.
        target: (B, 1, ...) labels; or (B, C, ...) 0 and 1 for regions, with a last channel for ignored voxels.
        annotated: (B, C) bool.
        regions: whether the classes are regions.
        ignore_label: label of the voxels that do not count; for regions, anything but None.

    Returns:
        `tp_hard`, `fp_hard` and `fn_hard`, each (C,) for regions and (C - 1,) for labels.
    """
    mask, first = None, 0 if regions else 1
    if regions:
        predicted = (output > 0).float()  # a probability above one half
        if ignore_label is not None:
            mask, target = 1 - target[:, -1:].float(), target[:, :-1]
    else:
        predicted = torch.zeros_like(output, dtype=torch.float32).scatter_(1, output.argmax(1, keepdim=True), 1)
        if ignore_label is not None:
            mask = (target != ignore_label).float()
            target = target.masked_fill(target == ignore_label, 0)
    known = annotated.to(output.device)
    counts = get_tp_fp_fn_tn(predicted, target, axes=tuple(range(2, output.ndim)), mask=mask)[:3]
    of_batch = [(count * known).sum(0)[first:].cpu().numpy() for count in counts]
    return dict(zip(("tp_hard", "fp_hard", "fn_hard"), of_batch, strict=True))


def annotated_summary(summary: dict[str, Any], annotations: AnnotatedLabels, file_ending: str) -> dict[str, Any]:
    """Leave out of nnU-Net's summary what is not annotated.

    All numbers of such a class in such a case become NaN, which is how nnU-Net marks the Dice of an absent class, and
    the means are taken without them.

    Args:
        summary: as nnU-Net's `load_summary_json` gives it, with labels (int) or regions (tuple) as keys.
        annotations: of the dataset.
        file_ending: of the label maps.

    Returns:
        A new summary for nnU-Net's `save_summary_json`. The foreground mean is that of the classes that have one.
    """
    per_case = []
    for entry in summary["metric_per_case"]:
        case = os.path.basename(entry["reference_file"])[: -len(file_ending)]
        classes = list(entry["metrics"])
        metrics = {
            which: dict(numbers) if known else dict.fromkeys(numbers, float("nan"))
            for (which, numbers), known in zip(entry["metrics"].items(), annotations.heads(case, classes), strict=True)
        }
        per_case.append({**entry, "metrics": metrics})
    mean = {
        which: {name: _mean([entry["metrics"][which][name] for entry in per_case]) for name in numbers}
        for which, numbers in summary["mean"].items()
    }
    names = list(summary["foreground_mean"])
    foreground = {name: _mean([numbers[name] for numbers in mean.values()]) for name in names}
    return {**summary, "metric_per_case": per_case, "mean": mean, "foreground_mean": foreground}


def _mean(values: list[float]) -> float:
    """Mean without NaN; NaN of nothing."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
