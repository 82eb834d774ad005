"""Preprocessed volumes of the cases that a network is fine-tuned on, made by the plans of its pretraining."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nnssl.checkpoints.pretrained import Pretrained
from nnssl.core.errors import UserError
from nnssl.data.dataset_run import DatasetRun
from nnssl.data.folders import dataset_argument, dataset_id, explained_errors_of, require_folders
from nnssl.data.guard import Images, warn_of_images
from nnssl.data.loader import Cases
from nnssl.data.plan_and_preprocess import prepare_datasets, volume_folders
from nnssl.data.planning import BLOCK, PlanRequest
from nnssl.data.pool import default_processes
from nnssl.data.report import RunOptions, majority_orientation
from nnssl.data.volumes import BloscVolume, VolumeFolder
from nnssl.finetuning.transfer_plans import plans_of

log = logging.getLogger("nnssl")


@dataclass(frozen=True)
class Prepared:
    """A dataset with plans and volumes.

    Args:
        folders: of its volumes: one, and another of volumes without a label map where others have one.
        plans: of the dataset.
        configuration: of the plans.
        dataset_json: of the dataset.
        orientation: the commonest of its volumes.
    """

    folders: tuple[VolumeFolder, ...]
    plans: dict[str, Any]
    configuration: str
    dataset_json: dict[str, Any]
    orientation: str | None

    def cases(self, names: Sequence[str]) -> Cases:
        """Chosen volumes in the loop's order, that of their folders; raises UserError where one is missing."""
        known = [set(folder.cases()) for folder in self.folders]
        if missing := [name for name in names if not any(name in cases for cases in known)]:
            folder = self.folders[0]
            raise UserError(f"{missing[0]} has no preprocessed volume in {folder.images}; mend the image (the report "
                            f"beside the plans says why it was left out), or leave its value empty and run "
                            f"nnssl_plan_and_preprocess -d {dataset_argument(folder.name)}")  # fmt: skip
        return Cases.of(self.folders, [[name for name in names if name in cases] for cases in known])

    def open(self, case: str) -> BloscVolume:
        """One volume."""
        cases = self.cases([case])
        return cases.folders[cases.folder_of[0]].open(case)

    def largest(self, names: Sequence[str]) -> tuple[int, ...]:
        """Voxels along (Z, Y, X) that cover each of some volumes."""
        return tuple(int(n) for n in np.max([self.open(name).size for name in names], axis=0))


def prepare_as(source: Pretrained, dataset: str, num_processes: int | None, allow: bool) -> Prepared:
    """Plan and preprocess a dataset as a pretraining was; what is done already is kept.

    The plans are the pretraining's own where it was made on this dataset, else `<plans>From<id>_classification`, with
    the volumes that `nnssl_transfer` makes too.

    Raises:
        UserError: the images are of another modality, or what `nnssl.plan_and_preprocess` raises.
    """
    if source.plans["dataset_name"] == dataset:
        return prepare_own(dataset, source.plans["plans_name"], source.configuration, num_processes)
    raw, preprocessed, _ = require_folders("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    processes = default_processes(num_processes)
    options = RunOptions(raw, preprocessed, source.configuration, processes, 1, 0, clean=False, strict=False,
                         show_progress=True)  # fmt: skip
    run = DatasetRun(options, dataset)
    given = Images.of_pretraining(source.plans, source.configuration, source.dataset_json, source.orientation)
    warn_of_images(given, Images(dataset, run.dataset.channel_names), allow, by_scheme=True)
    base = f"{source.plans['plans_name']}From{dataset_id(source.plans['dataset_name'])}"
    request = PlanRequest(plans_name=f"{base}_classification", allow_other_intensities=allow)
    channels = len(run.dataset.channel_names)
    plans = plans_of(source, request.name(), f"{base}_{source.configuration}", {}, channels)
    del plans[BLOCK]  # no trainer of nnU-Net starts from it
    with explained_errors_of(preprocessed):
        run.adopt_plans(plans, request)
        run.fingerprint()
        run.volumes.prepare()
    oriented = majority_orientation(run.home, request.name())
    warn_of_images(given, Images(dataset, orientations={f"most volumes of {dataset}": oriented}))
    folders = volume_folders(preprocessed, dataset, run.plans, source.configuration)
    return Prepared(tuple(folders), run.plans, source.configuration, run.dataset.dataset_json, oriented)


def prepare_own(dataset: str, plans: str, configuration: str, num_processes: int | None) -> Prepared:
    """The dataset by plans of its own, made where they are missing; raises as `nnssl.plan_and_preprocess`."""
    made = prepare_datasets([dataset], plans, configuration, num_processes, may_preprocess=True)
    return Prepared(tuple(made.folders), made.plans, configuration, made.dataset_json, made.orientation)
