"""The datasets of a call: from raw volumes to nnU-Net's preprocessed folder, and what a pretraining reads of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nnssl.core.errors import UserError
from nnssl.data.dataset_run import DatasetRun
from nnssl.data.fingerprint import read_fingerprint
from nnssl.data.folders import dataset_argument, dataset_id, dataset_name, explained_errors_of, require_folders
from nnssl.data.guard import Images, warn_of_images
from nnssl.data.planning import PlanRequest, load_plans
from nnssl.data.pool import default_processes
from nnssl.data.raw import read_dataset_json
from nnssl.data.report import PreparedDataset, RunOptions, majority_orientation
from nnssl.data.storage import body_folder, folder_without_label
from nnssl.data.volumes import VolumeFolder


def plan_and_preprocess(
    dataset_ids: Sequence[int | str],
    *,
    planner: str | None = None,
    preset: str | None = None,
    configuration: str = "3d_fullres",
    num_processes: int | None = None,
    gpu_memory_target: float | None = None,
    overwrite_target_spacing: Sequence[float] | None = None,
    overwrite_plans_name: str | None = None,
    overwrite_plans: bool = False,
    clean: bool = False,
    preprocess: bool = True,
    num_parts: int = 1,
    part_id: int = 0,
    strict: bool = False,
    show_progress: bool = True,
    overwrite_volumes: bool = False,
    reorient: bool = False,
    allow_other_intensities: bool = False,
) -> list[PreparedDataset]:
    """Plan and preprocess datasets with or without labels; what is done already is kept.

    A volume is done if it was made from the present raw files, labels and settings; if they changed, this is logged and
    the volume is made again. A case whose raw files are gone is not used any more as long as the raw dataset itself is
    there; without the raw dataset, its volumes are used as they are. Several jobs may prepare a dataset together.

    The first dataset is planned; the others get its plans as `<plans>From<id>`, so that all share spacing,
    normalisation and network. A dataset that nnU-Net has preprocessed is used as it is and gets body masks only.

    Args:
        dataset_ids: numbers or names.
        planner: name of a stock planner; None for nnU-Net's default.
        preset: a preset of `plans/`, or the name of plans that exist or that a stock planner makes.
        configuration: a 3-D one of the plans.
        num_processes: None for nnU-Net's number, at most one a core; 1 works in this process.
        gpu_memory_target: GB, for the planner.
        overwrite_target_spacing: mm (z, y, x), for the planner.
        overwrite_plans_name: another name for the plans.
        overwrite_plans: replace plans of that name, and one by one the volumes that do not fit them.
        clean: read all volumes anew for the fingerprint.
        preprocess: False to stop after planning.
        num_parts: jobs that share the cases; more than one needs plans that exist.
        part_id: which of these jobs this is, from 0.
        strict: refuse if any volume is left out.
        show_progress: a bar where standard error is a terminal.
        overwrite_volumes: prepare all volumes anew, also those that are done.
        reorient: have nnU-Net turn all images to RAS as it reads them, and predictions back (NIfTI only).
        allow_other_intensities: give the plans to datasets of another modality too (`nnssl.data.guard`).

    Returns:
        One entry a dataset, in the order given.

    Raises:
        UserError: anything that the user can mend, in a sentence that says how.
    """
    raw, preprocessed = require_folders("nnUNet_raw", "nnUNet_preprocessed")
    spacing = None if overwrite_target_spacing is None else tuple(overwrite_target_spacing)
    request = PlanRequest(planner, preset, gpu_memory_target, spacing, overwrite_plans_name, overwrite_plans,
                          reorient, allow_other_intensities)  # fmt: skip
    if not 0 <= part_id < num_parts:
        raise UserError(f"-part_id {part_id} is not one of the parts 0 to {num_parts - 1} of -num_parts {num_parts}")
    processes = default_processes(num_processes)
    if not dataset_ids:
        raise UserError("no dataset given; name one or more, as in -d 500")
    if overwrite_volumes and not preprocess:
        raise UserError("--overwrite_volumes prepares volumes and --no_pp none; give one of them")
    options = RunOptions(raw, preprocessed, configuration, processes, num_parts, part_id,
                         clean, strict, show_progress, overwrite_volumes)  # fmt: skip
    names = list(dict.fromkeys(dataset_name(d) for d in dataset_ids))
    with explained_errors_of(preprocessed):
        runs = [DatasetRun(options, name) for name in names]
        # all are planned before the first volume is preprocessed, so that mistakes show within minutes
        plans = runs[0].plan(request)
        for run in runs[1:]:
            run.take_plans(plans, runs[0].dataset, request)
        return [run.volumes.prepare() if preprocess else run.finish() for run in runs]


@dataclass(frozen=True)
class PreparedDatasets:
    """What a run reads; plans, dataset.json, fingerprint and orientation are those of the first dataset."""

    folders: list[VolumeFolder]
    plans: dict[str, Any]
    dataset_json: dict[str, Any]
    fingerprint: dict[str, Any]
    results: Path
    orientation: str | None


def prepare_datasets(
    dataset_ids: Sequence[int | str],
    plans: str,
    configuration: str,
    num_processes: int | None,
    may_preprocess: bool,
    allow_other_intensities: bool = False,
    purpose: str = "",
) -> PreparedDatasets:
    """Datasets with plans, volumes and body masks.

    Args:
        dataset_ids: numbers or names; the first one's plans are shared by all.
        plans: name of plans or of a preset.
        configuration: a 3D one of the plans.
        num_processes: for preprocessing, None for the default.
        may_preprocess: False where several processes run at once; everything must be there then.
        allow_other_intensities: whether datasets may be of another modality than the first one.
        purpose: of the others, for warnings, such as "the probe ".

    Raises:
        UserError: as `plan_and_preprocess`; or something is missing that must not be made here.
    """
    _, preprocessed, results = require_folders("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    names = list(dict.fromkeys(dataset_name(d) for d in dataset_ids))
    if may_preprocess:
        # what is done already costs a directory listing
        plan_and_preprocess(names, preset=plans, configuration=configuration, num_processes=num_processes,
                            allow_other_intensities=allow_other_intensities)  # fmt: skip
    plans_names = [plans] + [f"{plans}From{dataset_id(names[0])}"] * (len(names) - 1)
    found = [load_plans(preprocessed / n, p) for n, p in zip(names, plans_names, strict=True)]
    for name, content in zip(names, found, strict=True):
        if content is None:
            ids = " ".join(map(dataset_argument, names))
            raise UserError(f"{name} has no plans {plans} yet, and processes that train together do not make them; run "
                            f"nnssl_plan_and_preprocess -d {ids} -p {plans} first")  # fmt: skip
    own = [content for content in found if content is not None]
    fingerprint = preprocessed / names[0] / "dataset_fingerprint.json"
    first, *others = (majority_orientation(preprocessed / n, p) for n, p in zip(names, plans_names, strict=True))
    oriented = {f"most volumes of {purpose}{n}": letters for n, letters in zip(names[1:], others, strict=True)}
    warn_of_images(Images(names[0], orientation=first), Images("", orientations=oriented))
    return PreparedDatasets(
        [f for n, p in zip(names, own, strict=True) for f in volume_folders(preprocessed, n, p, configuration)],
        own[0],
        read_dataset_json(preprocessed / names[0]),
        read_fingerprint(fingerprint) if fingerprint.is_file() else {},
        results,
        first,
    )


def volume_folders(preprocessed: Path, name: str, plans: dict[str, Any], configuration: str) -> list[VolumeFolder]:
    """nnU-Net's folder of a dataset; and where it has labels and cases without one are ready, the folder of those."""
    labelled = VolumeFolder.from_plans(preprocessed, name, plans, configuration)
    folder = folder_without_label(labelled.images)
    bare = replace(labelled, images=folder, bodies=body_folder(folder), in_splits=False)
    return [labelled, bare] if bare.cases() else [labelled]
