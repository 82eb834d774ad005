"""vox2vec's published downstream recipe: patches of one volume, independent sigmoids, the body (methods.md 1.5)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.evaluation.evaluate_predictions import compute_metrics, load_summary_json
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from torch import Tensor, nn

from nnssl.core.errors import UserError
from nnssl.core.geometry import random_crop_start
from nnssl.core.sending import send
from nnssl.data.classes import foreground_classes
from nnssl.data.storage import masked_cases
from nnssl.data.volumes import VolumeFolder
from nnssl.finetuning.trainer import PretrainedTrainer
from nnssl.finetuning.windows import logits_without_averaging
from nnssl.methods.vox2vec.method import vox2vec_segmentation_loss

_AROUND_CLASS = 0.5  # share of the patches that hold a voxel of a random class


class OneVolumeLoader(nnUNetDataLoader):
    """Batches of patches of one volume each, unaugmented; each patch holds a voxel of a random class, or is anywhere.

    `target` (B, 2, Z, Y, X) int16 has the labels and the body mask, 0 and 1.

    Args:
        data: nnU-Net's data set, for the names and for the voxels of each class.
        folder: The volumes with their body masks.
        batch_size: Number of patches.
        patch_size: (3,).
        label_manager: nnU-Net's.
    """

    def __init__(self, data: Any, folder: VolumeFolder, batch_size: int, patch_size: Any, label_manager: Any) -> None:
        super().__init__(data, batch_size, patch_size, patch_size, label_manager, _AROUND_CLASS,
                         probabilistic_oversampling=True)  # fmt: skip
        self.folder = folder

    def generate_train_batch(self) -> dict[str, Any]:
        """Draw one batch, in nnU-Net's format."""
        case = self.get_indices()[0]
        volume, locations = self.folder.open(case), self._data.load_case(case)[3]["class_locations"]
        images, targets = [], []
        for number in range(self.batch_size):
            start = self.start_of_patch(volume.size, locations, self.get_do_oversample(number))
            stop = start + np.asarray(self.patch_size)
            images.append(volume.read(start, stop))
            labels = np.maximum(volume.read_labels(start, stop), 0)  # -1: what nnU-Net cut away
            targets.append(np.stack([labels, volume.read_body(start, stop).astype(np.int16)]))
        return {"data": torch.from_numpy(np.stack(images)), "target": torch.from_numpy(np.stack(targets)),
                "keys": [case] * self.batch_size}  # fmt: skip

    def start_of_patch(self, size: np.ndarray, locations: dict[Any, Any], around_class: bool) -> np.ndarray:
        """First voxel (3,) of a patch, below 0 in a volume that is smaller.

        Args:
            size: (3,) of the volume.
            locations: nnU-Net's `class_locations`: rows (0, z, y, x) of each class.
            around_class: Whether it must hold a voxel of one of the classes, each as likely; if there is one.
        """
        rng, patch = np.random.default_rng(np.random.randint(2**31)), np.asarray(self.patch_size)
        known = {which: rows for which, rows in locations.items() if len(rows)}
        annotated = known.pop(self.annotated_classes_key, None)  # present with an ignore label
        choices = list(known.values()) if around_class else []
        choices = choices or ([] if annotated is None else [annotated])
        if choices:
            rows = choices[rng.integers(len(choices))]
            return random_crop_start(rng, rows[rng.integers(len(rows))][1:], patch, size)
        room = np.asarray(size) - patch
        return rng.integers(np.minimum(room, 0), np.maximum(room, 0) + 1)


class BodyLoss(nn.Module):
    """`vox2vec_segmentation_loss` as nnU-Net calls a loss.

    Args:
        regions: Whether the outputs are regions; else the first is the background, which has no loss.
        ignore_label: Label of the voxels that do not count, if there is one.

    Attributes:
        body: (B, 1, Z, Y, X) bool, of the next batch; set it before every call.
    """

    body: Tensor

    def __init__(self, regions: bool, ignore_label: int | None) -> None:
        super().__init__()
        self.regions, self.ignore_label = regions, ignore_label

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss () of logits (B, C, Z, Y, X) and nnU-Net's target: labels (B, 1, ...) or regions."""
        (inside,), ignored = send([self.body], output.device), None
        if self.regions:
            logits, truth = output, target[:, : output.shape[1]]
            ignored = None if self.ignore_label is None else target[:, -1:] > 0
        else:
            logits, classes = output[:, 1:], torch.arange(1, output.shape[1], device=target.device)
            truth = target == classes.view(1, -1, 1, 1, 1)
            ignored = None if self.ignore_label is None else target == self.ignore_label
        return vox2vec_segmentation_loss(logits, truth, (inside if ignored is None else inside & ~ignored)[:, 0])


class PublishedVox2vec(PretrainedTrainer):
    """What the published recipe changes in a trainer; put it first among the bases.

    Each class is a decision of its own, and the background's logit is 0, so that the argmax of stock prediction is the
    largest logit above 0. A step takes 7 patches of one volume, unaugmented, half of them around a voxel of a random
    class. The loss is that of the body, whose masks `nnssl_plan_and_preprocess` writes. After nnU-Net's validation,
    which averages its windows, the trainer predicts again without, inside the body, and shows the Dice of both.
    """

    method: ClassVar[str | None] = "vox2vec"
    patches: ClassVar[int] = 7  # a step
    loss: Any
    dataset_class: Any

    def set_up(self) -> None:
        """Set the number of patches as well."""
        super().set_up()
        self.configuration_manager.configuration["batch_size"] = self.patches

    def of_network(self) -> dict[str, Any]:
        """Regions have no background."""
        return {} if self.label_manager.has_regions else {"background": "fixed"}

    def get_dataloaders(self) -> tuple[Any, Any]:
        """Loaders of training and validation patches.

        Raises:
            UserError: a case of these, or of the validation after the training, has no body mask.
        """
        datasets, folder, patch = self.get_tr_and_val_datasets(), self._volumes(), self.configuration_manager.patch_size
        self._refuse_without_body({*self.do_split()[1], *(case for data in datasets for case in data.identifiers)})
        loaders = [OneVolumeLoader(data, folder, self.batch_size, patch, self.label_manager) for data in datasets]
        processes, pinned = get_allowed_n_proc_DA(), self.device.type == "cuda"
        if processes == 0:
            return SingleThreadedAugmenter(loaders[0], None), SingleThreadedAugmenter(loaders[1], None)
        started = [
            NonDetMultiThreadedAugmenter(loader, None, max(1, processes // share), num_cached=max(3, processes // 2),
                                         pin_memory=pinned, wait_time=0.002)
            for share, loader in enumerate(loaders, start=1)
        ]  # fmt: skip
        return started[0], started[1]

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, bool, Any, tuple[int, ...]]:
        """Nothing is augmented."""
        rotation, flat, _, axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        return rotation, flat, self.configuration_manager.patch_size, axes

    def train_step(self, batch: dict) -> dict:
        """As the recipe's schedule has it, inside the body."""
        return super().train_step(self._inside(batch))

    def validation_step(self, batch: dict) -> dict:
        """nnU-Net's step; the loss is that of the body."""
        result: dict = super().validation_step(self._inside(batch))
        return result

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """As every trainer's.

        Raises:
            UserError: a case has no body mask.
        """
        self._refuse_without_body(self.do_split()[1])
        super().perform_actual_validation(save_probabilities)

    def after_validation(self) -> None:
        """Predict the validation cases again, without averaging the windows, and show the Dice of both."""
        super().after_validation()
        summary = Path(self.output_folder) / "validation" / "summary.json"
        if self.local_rank != 0 or not summary.is_file():
            return
        folder = Path(self.output_folder) / "validation_without_averaging"
        folder.mkdir(exist_ok=True)
        _, cases = self.do_split()
        scores = [self._scored(case, folder) for case in cases]
        own = float(np.nanmean([np.nanmean(of_class) for of_class in zip(*scores, strict=True)]))
        stock = load_summary_json(str(summary))["foreground_mean"]["Dice"]
        self.print_to_log_file(f"Mean Validation Dice inside the body, without averaging windows: {own:.4f}; of stock "
                               f"prediction, which averages them: {stock:.4f}", also_print_to_console=True)  # fmt: skip

    def _scored(self, case: str, folder: Path) -> list[float]:
        """Predict a case into the folder; Dice of each class or region."""
        volume, manager = self._volumes().open(case), self.label_manager
        image = torch.from_numpy(volume.read(np.zeros(3, dtype=int), volume.size))
        logits = logits_without_averaging(
            self.network_module, image, self.configuration_manager.patch_size, manager.num_segmentation_heads
        )
        outside = torch.from_numpy(~volume.read_body(np.zeros(3, dtype=int), volume.size))
        logits = torch.where(outside, -logits.abs(), logits)  # no class; the background's 0 stays
        properties = self.dataset_class(self.preprocessed_dataset_folder, [case]).load_case(case)[3]
        export_prediction_from_logits(logits, properties, self.configuration_manager, self.plans_manager,
                                      self.dataset_json, str(folder / case), False)  # fmt: skip
        ending = self.dataset_json["file_ending"]
        truth = Path(self.preprocessed_dataset_folder_base) / "gt_segmentations" / f"{case}{ending}"
        classes = foreground_classes(manager)
        metrics = compute_metrics(str(truth), str(folder / f"{case}{ending}"),
                                  self.plans_manager.image_reader_writer_class(), classes,
                                  manager.ignore_label)["metrics"]  # fmt: skip
        return [metrics[which]["Dice"] for which in classes]

    def _refuse_without_body(self, cases: Iterable[str]) -> None:
        if missing := sorted(set(cases) - masked_cases(self._volumes().images)):
            raise UserError(f"{type(self).__name__} learns inside the body, and {missing[0]} has no body mask; "
                            f"type: nnssl_plan_and_preprocess -d {self.plans_manager.dataset_name} "
                            f"-p {self.plans_manager.plans_name} -c {self.configuration_name}")  # fmt: skip

    def _volumes(self) -> VolumeFolder:
        preprocessed = Path(self.preprocessed_dataset_folder_base).parent
        manager = self.plans_manager
        return VolumeFolder.from_plans(preprocessed, manager.dataset_name, manager.plans, self.configuration_name)

    def _inside(self, batch: dict) -> dict:
        """The batch with nnU-Net's target; the loss gets the body."""
        labels, self.loss.body = batch["target"][:, :1], batch["target"][:, 1:] > 0
        if self.label_manager.has_regions:
            ignored = [] if self.label_manager.ignore_label is None else [self.label_manager.ignore_label]
            regions = [torch.tensor(region) for region in (*self.label_manager.foreground_regions, *ignored)]
            labels = torch.cat([torch.isin(labels, region).to(torch.int16) for region in regions], dim=1)
        return {**batch, "target": labels}

    def _build_loss(self) -> BodyLoss:
        return BodyLoss(self.label_manager.has_regions, self.label_manager.ignore_label)
