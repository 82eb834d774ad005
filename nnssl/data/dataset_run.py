"""One dataset of a call of `plan_and_preprocess`: what is known of it, gathered step by step."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from nnssl.core.json_files import checked, read_json, write_json
from nnssl.core.plans_schema import PlansFile
from nnssl.core.schemas import FingerprintFile
from nnssl.data.fingerprint import make_fingerprint, scan_dataset
from nnssl.data.folders import dataset_argument, dataset_id
from nnssl.data.planning import (
    PlanRequest,
    Plans,
    load_plans,
    make_plans,
    merged,
    moved_plans,
    refuse_other_content,
    renamed,
    same_plans,
)
from nnssl.data.pool import map_cases
from nnssl.data.preprocessing import PreprocessingJob, prepare_case
from nnssl.data.raw import RawCase, RawDataset, first_ct_channel, read_dataset_json, read_raw_dataset
from nnssl.data.reader import find_reader
from nnssl.data.report import earlier_orientations, refuse_left_out, report_file, write_report
from nnssl.data.settings import check_settings, remove_unfit_volumes, volume_settings
from nnssl.data.storage import body_folder, done_cases, masked_cases, refuse_older_format
from nnssl.errors import UserError

_NEW_FINGERPRINT = "delete it, and run the same line again: it is made anew"

logger = logging.getLogger("nnssl")


@dataclass(frozen=True)
class PreparedDataset:
    """What `plan_and_preprocess` leaves of one dataset.

    Args:
        name: such as Dataset500_Thorax.
        plans_name: the plans are `folder.parent / f"{plans_name}.json"`.
        configuration: of the plans.
        folder: nnU-Net's folder of the volumes.
        body_folder: of the body masks.
        cases: volumes that are ready (of this part), sorted; none where only plans were asked for.
        left_out: reason by case.
    """

    name: str
    plans_name: str
    configuration: str
    folder: Path
    body_folder: Path
    cases: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunOptions:
    """Folders and options of a call, see `plan_and_preprocess`."""

    raw: Path
    preprocessed: Path
    configuration: str
    num_processes: int
    num_parts: int
    part_id: int
    clean: bool
    strict: bool
    show_progress: bool


class DatasetRun:
    """Lists the dataset; then `plan` or `take_plans`, and `preprocess` or `finish`."""

    def __init__(self, options: RunOptions, name: str) -> None:
        self.options, self.home = options, options.preprocessed / name
        if (options.raw / name).is_dir():
            self.dataset = read_raw_dataset(options.raw, name)
        else:  # only the preprocessed volumes were kept
            self.dataset = RawDataset(name, options.raw / name, read_dataset_json(self.home), {}, {}, False)
        self.left_out = dict(self.dataset.left_out)
        self.orientations: dict[str, str | None] = {}
        self.plans: Plans = {}

    @cached_property
    def reader(self) -> Any:
        """nnU-Net's reader for the raw images."""
        return find_reader(self.dataset)

    @property
    def folder(self) -> Path:
        """Of the preprocessed volumes."""
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        return self.home / PlansManager(self.plans).get_configuration(self.options.configuration).data_identifier

    def plan(self, request: PlanRequest) -> Plans:
        """Plans of this dataset: those that exist, or new ones."""
        existing = self._existing(request.name(), request)
        if existing is None or request.explicit or request.overwrite:
            self._may_plan(request, existing)
            self._scan()
            new = make_plans(request, self.dataset.without(self.left_out), self.reader, self.home)
            self._accept(new, existing, request)
        else:
            logger.info("%s: its plans %s exist and are used", self.dataset.name, request.name())
            if self.options.clean:
                self._scan()
            self._check_configuration(existing)
            self.plans = existing
        return self.plans

    def take_plans(self, source: Plans, first: RawDataset, request: PlanRequest) -> None:
        """The first dataset's plans for this one."""
        _check_channels(first, self.dataset)
        self.adopt_plans(renamed(source, f"{source['plans_name']}From{dataset_id(first.name)}"), request)
        if self.dataset.labelled:
            self._scan()  # stock training copies the fingerprint, though these plans do not need it

    def adopt_plans(self, plans: Plans, request: PlanRequest) -> None:
        """Another dataset's plans for this one, under the name that they have.

        Raises:
            UserError: other plans of that name exist and may not be replaced; or the raw images are missing.
        """
        existing = self._existing(plans["plans_name"], request)
        if existing is None or request.overwrite or self.dataset.cases:
            self._may_plan(request, existing)
            plans = moved_plans(plans, plans["plans_name"], self.dataset, self.reader)
        self._accept(plans, existing, request)

    def fingerprint(self) -> dict[str, Any]:
        """Content of dataset_fingerprint.json, which is made where it is missing and there are raw images."""
        file = self.home / "dataset_fingerprint.json"
        if self.dataset.cases:
            self._scan()
        return dict(read_json(file, FingerprintFile, _NEW_FINGERPRINT)) if file.is_file() else {}

    def preprocess(self) -> PreparedDataset:
        """Prepare what is not done yet, copy labels for nnU-Net's validation, and report."""
        options, folder, cases = self.options, self.folder, self.dataset.cases
        refuse_older_format(folder)
        check_settings(folder, volume_settings(self.plans, options.configuration))
        if not (self.home / "dataset.json").is_file():
            shutil.copy(self.dataset.folder / "dataset.json", self.home / "dataset.json")
        done = done_cases(folder)
        everything = sorted({*cases, *self.left_out} if cases else done)
        part = everything[options.part_id :: options.num_parts]
        self.left_out = {name: self.left_out[name] for name in part if name in self.left_out and name not in done}
        ready = done & masked_cases(folder) & set(part)
        todo: list[RawCase | str] = [
            name if name in done else cases[name] for name in part if name not in ready and name not in self.left_out
        ]
        self._recall_orientations(ready)
        logger.info("%s: %d volumes to prepare, %d are done", self.dataset.name, len(todo), len(ready))
        prepared: set[str] = set()
        task = partial(prepare_case, job=self._job())
        for case in map_cases(task, todo, options.num_processes, "Preprocessing", options.show_progress):
            if case.reason is None:
                prepared.add(case.name)
                self.orientations[case.name] = case.orientation
            else:
                self.left_out[case.name] = case.reason
        ready |= prepared
        self._copy_labels(ready, prepared)
        return self.finish(sorted(ready))

    def finish(self, ready: list[str] | None = None) -> PreparedDataset:
        """Write the report and say what was left out; `ready` is None where nothing was to be preprocessed."""
        options, name = self.options, self.dataset.name
        self._report()
        if ready == [] and options.num_parts == 1:
            raise UserError(self._nothing_usable())
        if ready is not None:
            logger.info("%s: %d volumes ready in %s, %d left out", name, len(ready), self.folder, len(self.left_out))
        return PreparedDataset(name, self.plans["plans_name"], options.configuration, self.folder,
                               body_folder(self.folder), ready or [], dict(self.left_out))  # fmt: skip

    def _existing(self, plans_name: str, request: PlanRequest) -> Plans | None:
        try:
            return load_plans(self.home, plans_name)
        except UserError:
            if request.overwrite:
                refuse_other_content(self.home, plans_name)
                return None
            raise

    def _may_plan(self, request: PlanRequest, existing: Plans | None) -> None:
        """Raise UserError where new plans cannot be made, or not by one of several jobs."""
        if not self.options.raw.joinpath(self.dataset.name).is_dir():
            raise UserError(f"{self.dataset.name} cannot be planned, since {self.options.raw / self.dataset.name} does "
                            f"not exist; put the images there, or use plans that it has with -p")  # fmt: skip
        if not self.dataset.cases:
            raise UserError(self._nothing_usable())
        if self.options.num_parts > 1 and (existing is None or request.overwrite):
            raise UserError(f"the parts of {self.dataset.name} need plans first; run once, before all parts: "
                            f"nnssl_plan_and_preprocess -d {dataset_argument(self.dataset.name)} --no_pp, with the "
                            f"same -p or -pl; then the parts, without --overwrite_plans")  # fmt: skip

    def _scan(self) -> None:
        """Fingerprint from all volumes, unless there is one."""
        file = self.home / "dataset_fingerprint.json"
        if file.is_file() and not self.options.clean:
            read_json(file, FingerprintFile, _NEW_FINGERPRINT)  # planners read it without a check
            return
        logger.info("%s: fingerprint of %d volumes", self.dataset.name, len(self.dataset.cases))
        scans = scan_dataset(self.dataset, self.reader, self.options.num_processes, self.options.show_progress)
        self.left_out.update({scan.name: scan.reason for scan in scans if scan.reason is not None})
        self.orientations = {scan.name: scan.orientation for scan in scans if scan.reason is None}
        if self.options.strict:
            refuse_left_out(self.dataset.name, self.left_out)
        if not self.orientations:
            raise UserError(self._nothing_usable())
        write_json(file, make_fingerprint(scans, self.dataset))

    def _accept(self, new: Plans, existing: Plans | None, request: PlanRequest) -> None:
        """Keep the existing plans if the new ones agree with them; save the new ones if they may replace them."""
        checked(new, PlansFile, f"{self.dataset.name}: its new plans", "choose other plans, or another name for them")
        name, configuration = new["plans_name"], self.options.configuration
        self._check_configuration(new)
        if existing is not None and not request.overwrite:
            if not same_plans(new, existing, configuration):
                raise UserError(f"{self.dataset.name} has plans {name} that differ from those asked for; keep both "
                                f"with -overwrite_plans_name OTHER_NAME, or replace them and their volumes with "
                                f"--overwrite_plans")  # fmt: skip
            self.plans = existing
            return
        self.plans = merged(new, existing)
        before = existing if existing and configuration in existing["configurations"] else None
        if request.overwrite and remove_unfit_volumes(
            self.folder, volume_settings(new, configuration), before and volume_settings(before, configuration)
        ):
            logger.info("%s: removed the volumes in %s, made with other plans", self.dataset.name, self.folder)
        write_json(self.home / f"{name}.json", self.plans)
        shutil.copy(self.dataset.folder / "dataset.json", self.home / "dataset.json")
        logger.info("%s: plans saved as %s", self.dataset.name, self.home / f"{name}.json")

    def _check_configuration(self, plans: Plans) -> None:
        wanted = self.options.configuration
        three_d = [c for c in plans["configurations"] if not c.startswith("2d")]
        if wanted not in three_d:
            raise UserError(f"the plans {plans['plans_name']} of {self.dataset.name} have no 3-D configuration "
                            f"{wanted}; choose with -c: {', '.join(three_d) or 'they have none'}")  # fmt: skip

    def _job(self) -> PreprocessingJob:
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        options, dataset = self.options, self.dataset
        content = {key: value for key, value in dataset.dataset_json.items() if key != "dataset"}
        schemes = PlansManager(self.plans).get_configuration(options.configuration).normalization_schemes
        ct_channel = dataset.ct_channel if dataset.ct_channel is not None else first_ct_channel(schemes)
        return PreprocessingJob(self.plans, options.configuration, content, self.folder, ct_channel)

    def _recall_orientations(self, ready: set[str]) -> None:
        """What earlier runs found out about volumes that are not read again, those with other plans last."""
        name, parts = self.plans["plans_name"], self.options.num_parts
        own = [report_file(self.home, name), report_file(self.home, name, parts, self.options.part_id)]
        for file in (*own, *sorted(self.home.glob("*_left_out*.json"))):
            known = {case: letters for case, letters in earlier_orientations(file, ready).items() if letters}
            self.orientations = {**known, **self.orientations}

    def _copy_labels(self, ready: set[str], prepared: set[str]) -> None:
        """Labels for nnU-Net's validation: where there is none yet, and anew with a volume."""
        if not self.dataset.labelled:
            return
        folder, ending = self.home / "gt_segmentations", self.dataset.dataset_json["file_ending"]
        folder.mkdir(exist_ok=True)
        copied = {entry.name for entry in os.scandir(folder)}
        for name in ready & self.dataset.cases.keys():
            if name in prepared or name + ending not in copied:
                shutil.copy2(str(self.dataset.cases[name].label), folder / (name + ending))

    def _report(self) -> None:
        options = self.options
        file = report_file(self.home, self.plans["plans_name"], options.num_parts, options.part_id)
        write_report(file, self.left_out, self.orientations)
        if options.strict:
            refuse_left_out(self.dataset.name, self.left_out)

    def _nothing_usable(self) -> str:
        reasons = "; ".join(f"{case}: {reason}" for case, reason in sorted(self.left_out.items())[:5])
        return f"{self.dataset.name}: no volume can be used; mend the files ({reasons})"


def _check_channels(first: RawDataset, other: RawDataset) -> None:
    """Raise UserError unless two datasets can share plans."""
    if (len(first.channel_names), first.ct_channel) != (len(other.channel_names), other.ct_channel):
        raise UserError(f"{other.name} has the channels {', '.join(other.channel_names)} and {first.name} has "
                        f"{', '.join(first.channel_names)}; datasets that share plans need the same: run the command "
                        f"for each of them")  # fmt: skip
