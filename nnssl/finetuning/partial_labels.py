"""nnU-Net's training on cases with only some classes annotated."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.evaluation.evaluate_predictions import load_summary_json, save_summary_json
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.loss.dice import get_tp_fp_fn_tn
from nnunetv2.utilities.helpers import dummy_context
from torch import Tensor

from nnssl.core.errors import UserError
from nnssl.data.annotated_labels import AnnotatedLabels, annotated_labels_of_training
from nnssl.data.classes import foreground_classes
from nnssl.data.label_maps import raw_contradicts
from nnssl.finetuning.base_trainer import UsableCases
from nnssl.finetuning.partial_label_loss import AnnotatedLoss, partial_label_loss


class AnnotatedCases:
    """A data set that knows foreground only of the classes that are annotated in a case.

    nnU-Net's loader centres its foreground patches on these voxels.

    Args:
        dataset: nnU-Net's.
        annotations: of its cases.
        classes: keys of `class_locations` that are labels or regions; others, such as that of all voxels that are not
            ignored, stay.
    """

    def __init__(self, dataset: Any, annotations: AnnotatedLabels, classes: Iterable[Any]) -> None:
        self._dataset, self._annotations, self._classes = dataset, annotations, list(classes)
        self.identifiers: list[str] = dataset.identifiers

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Image, label map, label map of the previous stage or None, and properties."""
        image, seg, previous, properties = self._dataset.load_case(identifier)
        locations = dict(properties["class_locations"])
        annotated = self._annotations.heads(identifier, self._classes)
        for which, known in zip(self._classes, annotated, strict=True):
            if not known and which in locations:
                locations[which] = []
        return image, seg, previous, {**properties, "class_locations": locations}

    def __getitem__(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """As `load_case`."""
        return self.load_case(identifier)


def refuse_contradictions(annotations: AnnotatedLabels, dataset: Any, name: str, plans: str) -> None:
    """Raise UserError where the label map of a case holds a class that its list says is not annotated.

    Regions overlap, so that their locations do not tell; `nnssl_annotated_labels check` reads the label maps.

    Args:
        annotations: of the dataset.
        dataset: nnU-Net's data set of preprocessed cases.
        name: of the dataset, for the message.
        plans: their name, for the message.
    """
    for case in sorted(annotations.partial().keys() & set(dataset.identifiers)):
        allowed = annotations.values(case)
        for which, voxels in dataset.load_case(case)[3]["class_locations"].items():
            if not isinstance(which, tuple) and len(voxels) > 0 and int(which) not in allowed:
                names = [label for label, values in annotations.labels.items() if int(which) in values]
                raise UserError(f"the label map of {case} holds {' '.join(names)}, which annotated_labels says is not "
                                f"annotated there; {_way_out(annotations, case, name, plans)}")  # fmt: skip


def _way_out(annotations: AnnotatedLabels, case: str, name: str, plans: str) -> str:
    contradicts = raw_contradicts(annotations, name, case)
    if contradicts is None:
        return f"add it to the list of {case} in the dataset.json of {name} in nnUNet_preprocessed"
    if contradicts:
        return f"to see all such voxels, type: nnssl_annotated_labels check -d {name}"
    return (f"it was mended in nnUNet_raw, and the preprocessed one was not: type: "
            f"nnssl_plan_and_preprocess -d {name} -p {plans}")  # fmt: skip


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

    The numbers of a class in a case that does not have it annotated become NaN, which is how nnU-Net marks the Dice of
    an absent class, and the means are taken without them.

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


class PartialLabels(UsableCases):
    """What partial labels change in a trainer: loss, foreground patches and scores; put it first among the bases.

    dataset.json lists under `annotated_labels` what is annotated in a case (`nnssl.data.annotated_labels`); without the
    key all cases are complete and everything is nnU-Net's own, but for rounding in the loss. Regions are supported:
    their logits are independent, so that the loss of a region that is not annotated is left out.

    Attributes:
        annotations: of the dataset, from `initialize` on.
        loss: an `AnnotatedLoss`, from `initialize` on.
    """

    annotations: AnnotatedLabels
    loss: Any
    network: Any
    dataset_class: Any

    def initialize(self) -> None:
        """Read `annotated_labels` first: a mistake in it shows before the network is built."""
        home = Path(self.preprocessed_dataset_folder_base)
        name = self.plans_manager.dataset_name
        folder = self.preprocessed_dataset_folder
        cases = infer_dataset_class(folder).get_identifiers(folder)
        self.annotations = annotated_labels_of_training(self.dataset_json, name, home, cases)
        self._say_what_is_annotated()
        super().initialize()

    def annotated(self, keys: Sequence[str]) -> Tensor:
        """What is annotated in the cases of a batch.

        Args:
            keys: names of the B cases, `batch["keys"]`.

        Returns:
            (B, C) bool on the CPU, C the number of the network's outputs; background, where it is one, is always true.
        """
        first = [] if self.label_manager.has_regions else [True]
        return torch.tensor([first + self.annotations.heads(key, self._foreground) for key in keys])

    def train_step(self, batch: dict) -> dict:
        """nnU-Net's step, with a loss that knows what is annotated in the batch."""
        self.loss.annotated = self.annotated(batch["keys"])
        result: dict = super().train_step(batch)
        return result

    def validation_step(self, batch: dict) -> dict:
        """nnU-Net's step; a class is counted in the cases that have it annotated."""
        annotated = self.loss.annotated = self.annotated(batch["keys"])
        if bool(annotated.all()):
            result: dict = super().validation_step(batch)
            return result
        data, target = batch["data"].to(self.device, non_blocking=True), batch["target"]
        if isinstance(target, list):
            target = [level.to(self.device, non_blocking=True) for level in target]
        else:
            target = target.to(self.device, non_blocking=True)
        with torch.autocast("cuda") if self.device.type == "cuda" else dummy_context():
            output = self.network(data)
            loss = self.loss(output, target)
        if self.enable_deep_supervision:
            output, target = output[0], target[0]
        manager = self.label_manager
        counts = hard_counts(output, target, annotated, manager.has_regions, manager.ignore_label)
        return {"loss": loss.detach().cpu().numpy(), **counts}

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """nnU-Net's, in which a case has foreground only of what is annotated in it; refuses contradictions."""
        training, validation = super().get_tr_and_val_datasets()
        return self._restricted(training), self._restricted(validation)

    def after_validation(self) -> None:
        """Write the summary anew without what is not annotated."""
        super().after_validation()
        if self.local_rank != 0 or not self.annotations.listed:
            return
        file = Path(self.output_folder) / "validation" / "summary.json"
        summary = annotated_summary(load_summary_json(str(file)), self.annotations, self.dataset_json["file_ending"])
        save_summary_json(summary, str(file))
        for which, numbers in summary["mean"].items():
            self.logger.log_summary(f"final_val/class_{which}_dice", numbers["Dice"])
        dice = summary["foreground_mean"]["Dice"]
        self.logger.log_summary("final_val/foreground_dice", dice)
        self.print_to_log_file("Mean Validation Dice where annotated (summary.json):", dice, also_print_to_console=True)

    def _build_loss(self) -> AnnotatedLoss:
        return partial_label_loss(super()._build_loss(), type(self).__name__)

    @property
    def _foreground(self) -> list[Any]:
        """nnU-Net's labels or regions, in the order of the outputs."""
        return list(foreground_classes(self.label_manager))

    def _restricted(self, dataset: Any) -> AnnotatedCases:
        """Before workers start, label maps that contradict the list are refused."""
        refuse_contradictions(self.annotations, dataset, self.plans_manager.dataset_name, self.plans_manager.plans_name)
        return AnnotatedCases(dataset, self.annotations, self._foreground)

    def _say_what_is_annotated(self) -> None:
        partial, names = self.annotations.partial(), self.annotations.labels
        if not self.annotations.listed:
            self.print_to_log_file("dataset.json has no annotated_labels: every case counts as completely annotated, "
                                   "as in nnU-Net's own training (for a list, type: nnssl_annotated_labels propose -d "
                                   f"{self.plans_manager.dataset_name} --write)")  # fmt: skip
            return
        lacking = ", ".join(f"{name} in {sum(name not in of for of in partial.values())}" for name in names)
        self.print_to_log_file(f"Partial labels: {len(partial)} cases are not completely annotated; not annotated are: "
                               f"{lacking}")  # fmt: skip
