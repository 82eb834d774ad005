"""From raw volumes to nnU-Net's preprocessed folder: fingerprint, plans, volumes, body masks."""

from __future__ import annotations

from collections.abc import Sequence

from nnssl.core.errors import UserError
from nnssl.data.dataset_run import DatasetRun
from nnssl.data.folders import dataset_name, explained_errors_of, require_folders
from nnssl.data.planning import PlanRequest
from nnssl.data.pool import default_processes
from nnssl.data.report import PreparedDataset, RunOptions


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

    A volume is done if it was made from the raw files, labels and settings that are there now; where they changed, that
    is said and it is prepared again. Cases whose raw files are gone are not used any more, while the raw dataset itself
    is there; without it, its volumes are used as they are. Any number of jobs may prepare a dataset together.

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
        overwrite_plans: replace plans of that name, and volumes that they do not fit, one by one.
        clean: read all volumes anew for the fingerprint.
        preprocess: False to stop after planning.
        num_parts: jobs that share the cases; more than one needs plans that exist.
        part_id: which of these jobs this is, from 0.
        strict: refuse if any volume is left out.
        show_progress: a bar where standard error is a terminal.
        overwrite_volumes: prepare all volumes anew, those too that are done.
        reorient: have nnU-Net turn all images to RAS as it reads them, and predictions back (NIfTI only).
        allow_other_intensities: give the plans to datasets of another modality too (`nnssl.data.guard`).

    Returns:
        One entry a dataset, in the order given.

    Raises:
        UserError: whatever the user can mend, in a sentence that says how.
    """
    raw, preprocessed = require_folders("nnUNet_raw", "nnUNet_preprocessed")
    spacing = None if overwrite_target_spacing is None else tuple(overwrite_target_spacing)
    request = PlanRequest(planner, preset, gpu_memory_target, spacing, overwrite_plans_name, overwrite_plans,
                          reorient, allow_other_intensities)  # fmt: skip
    if not 0 <= part_id < num_parts:
        raise UserError(f"-part_id {part_id} is not one of the parts 0 to {num_parts - 1} of -num_parts {num_parts}")
    if num_processes is not None and num_processes < 1:
        raise UserError(f"-np {num_processes} leaves nobody to work; use -np 1 or more")
    if not dataset_ids:
        raise UserError("no dataset given; name one or more, as in -d 500")
    if overwrite_volumes and not preprocess:
        raise UserError("--overwrite_volumes prepares volumes and --no_pp none; give one of them")
    options = RunOptions(raw, preprocessed, configuration, num_processes or default_processes(), num_parts, part_id,
                         clean, strict, show_progress, overwrite_volumes)  # fmt: skip
    names = list(dict.fromkeys(dataset_name(d) for d in dataset_ids))
    with explained_errors_of(preprocessed):
        return _all_datasets(options, request, names, preprocess)


def _all_datasets(
    options: RunOptions, request: PlanRequest, names: list[str], preprocess: bool
) -> list[PreparedDataset]:
    """All datasets are planned before the first volume is preprocessed: mistakes show within minutes."""
    runs = [DatasetRun(options, name) for name in names]
    plans = runs[0].plan(request)
    for run in runs[1:]:
        run.take_plans(plans, runs[0].dataset, request)
    return [run.preprocess() if preprocess else run.finish() for run in runs]
