"""nnU-Net trainers that learn from a trained network too, also on volumes without labels (LAPN; methods.md 5.5)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from nnunetv2.paths import nnUNet_results
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.utilities.helpers import dummy_context
from torch import Tensor

from nnssl.checkpoints.pretrained import name_of
from nnssl.core.errors import UserError
from nnssl.data.trusted import read_nnunet_checkpoint
from nnssl.finetuning.distillation_loss import teaching_loss, temperature_at
from nnssl.finetuning.partial_label_loss import AnnotatedLoss
from nnssl.finetuning.partial_labels import PartialLabels
from nnssl.finetuning.recipes import FlareRecipe
from nnssl.finetuning.segmentation import refuse_second_stage
from nnssl.finetuning.teacher import ENTRY, Teacher, TeacherPlace, find_teacher, refuse_other_teacher
from nnssl.finetuning.unlabelled import UnlabelledCases, WithUnlabelled, is_unlabelled, prepare_unlabelled, share_of
from nnssl.networks.build import resolve_configuration
from nnssl.networks.monai_unet import has_deep_supervision

_SHARE = "unlabelled_share"  # of plans["nnssl"]


class DistilledLoss(AnnotatedLoss):
    """a times the teacher's loss at full resolution, plus 1 - a times the loss on what is annotated.

    Args:
        labelled: the loss on what is annotated, with or without deep supervision; this object replaces it.
        weight: a.
        regions: whether the classes are regions.
        dice_ce: see `nnssl.finetuning.distillation_loss.teaching_loss`.

    Attributes:
        teacher: (B, C, Z, Y, X) logits of the next batch; set them before every call, which forgets them.
        temperature: of the epoch.
    """

    teacher: Tensor | None

    def __init__(self, labelled: AnnotatedLoss, weight: float, regions: bool, dice_ce: bool) -> None:
        super().__init__(labelled.loss)
        self.weight, self.regions, self.dice_ce = weight, regions, dice_ce
        self.teacher, self.temperature = None, 1.0

    def forward(self, output: Any, target: Any) -> Tensor:
        """Return the loss () of logits and their target, or of one list of each with deep supervision."""
        student = output[0] if isinstance(output, (list, tuple)) else output
        teacher, self.teacher = self.teacher, None
        if teacher is None:
            raise ValueError("the teacher's logits of this batch were not set")
        taught = teaching_loss(student, teacher, self.temperature, self.regions, self.dice_ce)
        return self.weight * taught + (1 - self.weight) * super().forward(output, target)


class StudentTrainer(FlareRecipe, PartialLabels):
    """The plans' network learns by the recipe of a student, from what is annotated alone."""

    def set_up(self) -> None:
        """Set the recipe of the class, then what the other bases set.

        Raises:
            UserError: a 2D configuration, or the second stage of a cascade.
        """
        resolved = resolve_configuration(self.plans_manager.plans, self.configuration_name)
        refuse_second_stage(resolved, self.configuration_name, type(self).__name__)
        self.enable_deep_supervision = has_deep_supervision(resolved)
        self.initial_lr, self.weight_decay = self.rate, self.decay
        self.num_epochs, self.num_iterations_per_epoch = self.epochs, self.steps
        super().set_up()


class DistillTrainer(StudentTrainer):
    """The plans' network learns from the image alone: what is annotated, and what a teacher says of the same patch.

    The teacher is read when training starts, never saved with the student, and not needed for validation or
    prediction. Volumes of `imagesUn`, and cases whose `annotated_labels` are empty, learn from the teacher alone.
    Deep supervision stays as in the plans for what is annotated; the teacher's part compares full resolution. Only
    axes that the teacher was mirrored along are mirrored, as it knows no others.
    """

    teacher_trainer: ClassVar[str | None] = None  # trainer of the teacher; None for the only model there is
    teacher_weight: ClassVar[float] = 0.5  # a
    first_temperature: ClassVar[float] = 1.0
    last_temperature: ClassVar[float] = 4.0
    dice_ce_on_teacher: ClassVar[bool] = False
    unlabelled_share: ClassVar[float | None] = None  # of the patches; None for `share_of`; the plans' block may say it
    teacher: Teacher | None = None
    _unlabelled: UnlabelledCases | None = None
    loss: Any
    inference_allowed_mirroring_axes: Any

    def set_up(self) -> None:
        """As every student, with a place for the teacher in the plans."""
        self.plans_manager.plans.setdefault("nnssl", {})  # names the teacher from the start of the training on
        super().set_up()

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        """Go on with a checkpoint of this trainer, with the teacher that it had."""
        content = filename_or_checkpoint
        if not isinstance(content, dict):
            content = read_nnunet_checkpoint(content)
        before = content["init_args"]["plans"].get("nnssl", {})
        if ENTRY in before:
            self._block[ENTRY] = before[ENTRY]
        super().load_checkpoint(filename_or_checkpoint)

    def on_train_start(self) -> None:
        """Meet the teacher and prepare the volumes without labels; then as nnU-Net's."""
        if not self.was_initialized:
            self.initialize()
        self._meet_teacher()
        home = Path(self.preprocessed_dataset_folder_base)
        self._unlabelled = prepare_unlabelled(
            self.plans_manager.plans, self.configuration_name, home, self.local_rank == 0, self.print_to_log_file
        )
        super().on_train_start()

    def on_train_epoch_start(self) -> None:
        """Also set the temperature."""
        super().on_train_epoch_start()
        self.loss.temperature = temperature_at(
            self.current_epoch, self.num_epochs, self.first_temperature, self.last_temperature
        )
        self.print_to_log_file(f"Temperature: {self.loss.temperature:.3f}")

    def train_step(self, batch: dict) -> dict:
        """Add the teacher's outputs on the same patches."""
        result: dict = super().train_step(self._taught(batch))
        return result

    def validation_step(self, batch: dict) -> dict:
        """Add the teacher's outputs: the loss is that of training, so that the two curves can be compared."""
        result: dict = super().validation_step(self._taught(batch))
        return result

    def annotated(self, keys: Sequence[str]) -> Tensor:
        """Nothing but background is annotated in a volume without labels."""
        rows = super().annotated(keys)  # which knows nothing of them and counts them as complete
        first = 0 if self.label_manager.has_regions else 1
        rows[torch.tensor([is_unlabelled(key) for key in keys]), first:] = False
        return rows

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """Add the volumes without labels to the training cases."""
        training, validation = super().get_tr_and_val_datasets()
        without = self._unlabelled
        if without is not None and without.cases:
            share = self._share(len(training.identifiers), len(without.cases))
            dataset = infer_dataset_class(str(without.folder))(str(without.folder), list(without.cases))
            if share > 0:
                training = WithUnlabelled(training, dataset, share)
            self.print_to_log_file(f"{len(without.cases)} volumes without labels learn from the teacher alone: "
                                   f"{share:.0%} of the patches")  # fmt: skip
        return training, validation

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, bool, Any, tuple[int, ...]]:
        """Mirror only along the axes that the teacher was mirrored along."""
        rotation, flat, size, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if self.teacher is not None:
            axes = tuple(axis for axis in axes if axis in (self.teacher.description.mirroring_axes or ()))
            self.inference_allowed_mirroring_axes = axes or None
        return rotation, flat, size, axes

    def _build_loss(self) -> AnnotatedLoss:
        return DistilledLoss(
            super()._build_loss(), self.teacher_weight, self.label_manager.has_regions, self.dice_ce_on_teacher
        )

    @property
    def _block(self) -> dict[str, Any]:
        block: dict[str, Any] = self.plans_manager.plans.setdefault("nnssl", {})
        return block

    def _taught(self, batch: dict) -> dict:
        if self.teacher is None:
            raise RuntimeError("on_train_start reads the teacher; call it first")
        data = batch["data"].to(self.device, non_blocking=True)
        with torch.autocast("cuda") if self.device.type == "cuda" else dummy_context():
            self.loss.teacher = self.teacher(data)
        return {**batch, "data": data}

    def _meet_teacher(self) -> None:
        results = Path(str(nnUNet_results))
        place = find_teacher(self._block, results, Path(self.output_folder_base), self.fold, self.teacher_trainer)
        teacher = Teacher(place)
        refuse_other_teacher(teacher.description, self.plans_manager.plans, self.configuration_name, self.dataset_json)
        self._block[ENTRY] = name_of(place.named, results)
        self.teacher = teacher.to(self.device)
        parameters = sum(p.numel() for p in teacher.network.parameters())
        own = sum(p.numel() for p in self.network.parameters())
        self.print_to_log_file(f"Teacher: {place.checkpoint} ({teacher.description.trainer_name}, {parameters:,} "
                               f"parameters; the student has {own:,})")  # fmt: skip
        self._warn_of(place, teacher)

    def _warn_of(self, place: TeacherPlace, teacher: Teacher) -> None:
        described = teacher.description
        patch = resolve_configuration(described.plans, described.configuration)["patch_size"]
        if list(patch) != list(self.configuration_manager.patch_size):
            self.print_to_log_file(f"WARNING: the teacher was trained on patches of {list(patch)} and sees patches of "
                                   f"{list(self.configuration_manager.patch_size)} here, with another amount of "
                                   f"context; set patch_size in these plans to the teacher's")  # fmt: skip
        if place.fold != str(self.fold) and str(self.fold) != "all":
            self.print_to_log_file(f"WARNING: the teacher is of fold {place.fold} and has seen validation cases of "
                                   f"fold {self.fold}, whose Dice will be too good; name a teacher of this "
                                   f"fold")  # fmt: skip

    def _share(self, labelled: int, unlabelled: int) -> float:
        given = self._block.get(_SHARE, self.unlabelled_share)
        if given is None:
            return share_of(labelled, unlabelled)
        if not isinstance(given, (int, float)) or not 0 <= given < 1:
            raise UserError(f'the plans\' "nnssl": {{"{_SHARE}": {given!r}}} must be a number of at least 0 and below '
                            f"1, such as 0.5")  # fmt: skip
        return float(given)
