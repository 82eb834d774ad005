"""nnU-Net's training on cases of which only some classes are annotated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from nnunetv2.evaluation.evaluate_predictions import load_summary_json, save_summary_json
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.helpers import dummy_context
from torch import Tensor

from nnssl.data.annotated_labels import AnnotatedLabels, annotated_labels_of_training
from nnssl.finetuning.quick_run import apply_settings
from nnssl.finetuning.usable_cases import UsableCases
from nnssl.partial_labels.cases import AnnotatedCases, refuse_contradictions
from nnssl.partial_labels.loss import AnnotatedLoss, partial_label_loss
from nnssl.partial_labels.scores import annotated_summary, hard_counts


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
        manager = self.label_manager
        return list(manager.foreground_regions if manager.has_regions else manager.foreground_labels)

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


class PartialLabelTrainer(PartialLabels):
    """Stock nnU-Net training on partial labels; `nnssl_num_epochs` and so on shorten it."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int | str,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  (as in nnU-Net, which reads the signature)
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        apply_settings(self, self.plans_manager.plans.get("nnssl", {}))
