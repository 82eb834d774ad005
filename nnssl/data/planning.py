"""nnU-Net plans for a raw dataset: from any stock planner, from a preset, or those of another dataset."""

from __future__ import annotations

import contextlib
import inspect
import json
import logging
import os
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl.core.errors import UserError
from nnssl.core.files import read_json
from nnssl.core.names import check_name, nearest
from nnssl.core.plans_schema import PlansFile
from nnssl.data.guard import ALLOWED
from nnssl.data.pool import quietly
from nnssl.data.presets import plans_from_preset, presets
from nnssl.data.raw import RawDataset

DEFAULT_PLANNER = "ExperimentPlanner"
_LARGEST_MM, _LARGEST_GB = 1000.0, 10_000.0
_ALIKE = 0.9  # from which plans are suggested: names of presets share their beginning
BLOCK = "nnssl"  # entry of plans: which pretraining a network starts from, see `nnssl.finetuning`

Plans = dict[str, Any]


@dataclass(frozen=True)
class PlanRequest:
    """Which plans are asked for.

    Args:
        planner: name of a stock planner; None for nnU-Net's default.
        preset: a preset, or the name of plans that exist or that a stock planner makes (nnUNetResEncUNetLPlans).
        gpu_memory_target: GB, for the planner; None for its own.
        target_spacing: mm, in the file's array axes (z, y, x), for the planner's 3d_fullres; None for its own.
        plans_name: None for the planner's or the preset's.
        overwrite: replace plans of that name.
        reorient: have nnU-Net turn all images to RAS as it reads them.
        allow_other_intensities: give plans to datasets of another modality too.
    """

    planner: str | None = None
    preset: str | None = None
    gpu_memory_target: float | None = None
    target_spacing: tuple[float, ...] | None = None
    plans_name: str | None = None
    overwrite: bool = False
    reorient: bool = False
    allow_other_intensities: bool = False

    def __post_init__(self) -> None:
        """Raise UserError where options exclude each other, are out of range, or are no names."""
        options = (self.planner, self.gpu_memory_target, self.target_spacing)
        if self.preset is not None and any(option is not None for option in options):
            raise UserError("-p takes plans as they are; -pl, -gpu_memory_target and -overwrite_target_spacing make "
                            "plans: give one or the other")  # fmt: skip
        spacing, memory = self.target_spacing, self.gpu_memory_target
        if spacing is not None and (len(spacing) != 3 or not all(0 < mm <= _LARGEST_MM for mm in spacing)):
            raise UserError(f"-overwrite_target_spacing needs three numbers above 0 and up to {_LARGEST_MM:g}, in mm, "
                            f"as in 2 1 1 (z y x), not {' '.join(map(str, spacing))}")  # fmt: skip
        if memory is not None and not 0 < memory <= _LARGEST_GB:
            raise UserError(f"-gpu_memory_target needs a number of GB above 0 and up to {_LARGEST_GB:g}, as in 24, not "
                            f"{memory}")  # fmt: skip
        for flag, name in (("-p", self.preset), ("-overwrite_plans_name", self.plans_name)):
            if name is not None:
                check_name(name, "plans", flag)

    @property
    def explicit(self) -> bool:
        """Whether plans that exist must agree with the request."""
        return any(option is not None for option in (self.planner, self.gpu_memory_target, self.target_spacing))

    def name(self) -> str:
        """Name of the plans.

        Raises:
            UserError: there is no such planner.
        """
        if self.plans_name or self.preset:
            return self.plans_name or str(self.preset)
        return _default_name(planner_class(self.planner or DEFAULT_PLANNER))


def planner_classes() -> dict[str, Any]:
    """nnU-Net's planners by name."""
    import importlib
    import pkgutil

    import nnunetv2.experiment_planning.experiment_planners as room
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    found: dict[str, Any] = {}
    for module in pkgutil.walk_packages(room.__path__, room.__name__ + "."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if inspect.isclass(value) and issubclass(value, ExperimentPlanner) and value.__module__ == module.name:
                found.setdefault(name, value)
    return found


def planner_class(name: str) -> Any:
    """One of nnU-Net's planners.

    Raises:
        UserError: with the names that exist.
    """
    planners = planner_classes()
    if name not in planners:
        raise UserError(f"there is no planner {name}; nnU-Net's planners: {', '.join(sorted(planners))}")
    return planners[name]


def load_plans(folder: Path, name: str) -> Plans | None:
    """Plans `name` of the preprocessed dataset `folder`, or None.

    Raises:
        UserError: it is no name of plans, or the file does not fit `nnssl.core.plans_schema.PlansFile`.
    """
    file = folder / f"{check_name(name, 'plans')}.json"
    if not file.is_file():
        return None
    plans: Plans = read_json(file, PlansFile, "restore it, choose other plans with -p, or add --overwrite_plans")
    return plans


def existing_plans(folder: Path) -> list[str]:
    """Names of the plans of the preprocessed dataset `folder`, sorted."""
    return sorted(file.stem for file in folder.glob("*.json") if _looks_like_plans(file))


def refuse_other_content(folder: Path, name: str) -> None:
    """Raise UserError where NAME.json holds anything but (perhaps damaged) plans: it must not be overwritten."""
    file = folder / f"{check_name(name, 'plans')}.json"
    if file.exists() and not _looks_like_plans(file):
        raise UserError(f"{file} holds no plans, and --overwrite_plans would replace it; choose another name with "
                        f"-overwrite_plans_name")  # fmt: skip


def _looks_like_plans(file: Path) -> bool:
    if not file.is_file() or not os.access(file, os.R_OK):
        return False
    content = file.read_bytes()
    return b'"configurations"' in content or b'"plans_name"' in content


def make_plans(request: PlanRequest, dataset: RawDataset, reader: Any, preprocessed: Path) -> Plans:
    """Plans for the cases of `dataset`, read by `reader`, not yet saved; `preprocessed` holds its fingerprint.

    Raises:
        UserError: unknown planner or preset, or a preset that does not fit the dataset.
    """
    name = request.name()
    with quietly(if_it_fails=logging.ERROR), _one_thread_at_least():
        planner = _planner(planner_of(request, preprocessed), dataset, reader, request)
        if request.preset in presets():
            plans = plans_from_preset(str(request.preset), dataset, planner)
        else:
            plans = planner.plan_experiment()
    plans = renamed(json.loads(json.dumps(plans)), name)
    if request.target_spacing is not None or request.reorient:
        _own_data_folders(plans)
    return plans


def renamed(plans: Plans, name: str) -> Plans:
    """The same plans under another name, with data folders of that name.

    With another `dataset_name` and reader this is nnU-Net's `move_plans_between_datasets`, which would start twelve
    processes to list the images.
    """
    plans, old = deepcopy(plans), plans["plans_name"]
    plans["plans_name"] = name
    for configuration in plans["configurations"].values():
        folder = configuration.get("data_identifier")
        if folder is not None and old != name:
            rest = folder[len(old) :] if folder.startswith(old) else f"_{folder}"
            configuration["data_identifier"] = name + rest
    return plans


def same_plans(a: Plans, b: Plans, configuration: str) -> bool:
    """Whether two plans agree in everything that volumes, patches, the network and its weights depend on."""
    keys = ("transpose_forward", "foreground_intensity_properties_per_channel", "experiment_planner_used")
    if any(a.get(key) != b.get(key) for key in keys) or _pretrained(a) != _pretrained(b):
        return False
    return bool(a["configurations"].get(configuration) == b["configurations"].get(configuration))


def merged(new: Plans, old: Plans | None) -> Plans:
    """New plans plus further configurations of the old ones, which nnU-Net's planners keep too.

    Plans that name a pretraining have its configuration only.
    """
    if old is None or BLOCK in new:
        return new
    return {**new, "configurations": {**old["configurations"], **new["configurations"]}}


def _pretrained(plans: Plans) -> list[Any]:
    """The pretraining that plans name; the rest of their block, such as a number of epochs, is up to the user."""
    return [plans.get(BLOCK, {}).get(key) for key in ("checkpoint", "method", "levels", ALLOWED)]


def _default_name(planner: Any) -> str:
    return str(inspect.signature(planner.__init__).parameters["plans_name"].default)


def can_be_made(plans_name: str) -> bool:
    """Whether plans of that name can be made: a preset, or those of a planner."""
    return plans_name in presets() or plans_name in _planners_by_plans()


def _planners_by_plans() -> dict[str, Any]:
    return {_default_name(planner): planner for planner in reversed(planner_classes().values())}


def planner_of(request: PlanRequest, preprocessed: Path) -> Any:
    """The planner that is asked for by its name or that of its plans; nnU-Net's default one fills in a preset.

    Raises:
        UserError: there is none; with the names that exist, also in the folder `preprocessed` of the dataset.
    """
    if request.preset is None or request.preset in presets():
        return planner_class(request.planner or DEFAULT_PLANNER)
    planners = _planners_by_plans()
    if request.preset not in planners:
        existing = existing_plans(preprocessed)
        if (meant := nearest(request.preset, [*existing, *presets(), *planners], _ALIKE)) is not None:
            raise UserError(f"there are no plans {request.preset} of {preprocessed.name}; did you mean {meant}?")
        raise UserError(f"there are no plans {request.preset} of {preprocessed.name}; it has "
                        f"{', '.join(existing) or 'none yet'}; presets: {', '.join(presets())}; "
                        f"plans of nnU-Net's planners: {', '.join(sorted(planners))}")  # fmt: skip
    return planners[request.preset]


def _planner(planner: Any, dataset: RawDataset, reader: Any, request: PlanRequest) -> Any:
    """A stock planner that knows the healthy cases and keeps its plans in memory."""
    from nnunetv2.utilities.json_export import recursive_fix_for_json_export

    options: dict[str, Any] = {} if request.preset in presets() else {"plans_name": request.name()}
    if request.gpu_memory_target is not None:
        options["gpu_memory_target_in_gb"] = request.gpu_memory_target
    if request.target_spacing is not None:
        options["overwrite_target_spacing"] = [float(s) for s in request.target_spacing]
    with _listed(dataset):
        try:
            made = planner(dataset.name, **options)
        except AssertionError as error:
            raise UserError(f"{dataset.name}: splits_final.json of nnUNet_raw and of nnUNet_preprocessed name "
                            f"different cases; delete the one that is wrong") from error  # fmt: skip
    made.dataset_json.setdefault("numTraining", len(made.dataset_fingerprint["spacings"]))
    made.determine_reader_writer = lambda: reader  # known already; the planner would read an image for it
    made.save_plans = recursive_fix_for_json_export  # called with the finished plans; they are saved when accepted
    return made


@contextlib.contextmanager
def _listed(dataset: RawDataset) -> Iterator[None]:
    """Let planners see the healthy cases; their own listing starts twelve processes and needs labels."""
    from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner as module

    listing = {case.name: {"images": list(case.images), "label": case.label} for case in dataset.cases.values()}
    stock = module.get_filenames_of_train_images_and_targets
    module.get_filenames_of_train_images_and_targets = lambda *_args, **_kwargs: listing
    try:
        yield
    finally:
        module.get_filenames_of_train_images_and_targets = stock


@contextlib.contextmanager
def _one_thread_at_least() -> Iterator[None]:
    """Replace `nnUNet_n_proc_DA=0`, which is right for training but which torch refuses from planners."""
    name = "nnUNet_n_proc_DA"
    stock = os.environ.get(name)
    if stock == "0":
        os.environ[name] = "1"
    try:
        yield
    finally:
        if stock == "0":
            os.environ[name] = stock


def _own_data_folders(plans: Plans) -> None:
    """Give changed volumes folders of their own; the ResEnc planners share those of nnUNetPlans."""
    for name, configuration in plans["configurations"].items():
        if "data_identifier" in configuration:
            configuration["data_identifier"] = f"{plans['plans_name']}_{name}"
