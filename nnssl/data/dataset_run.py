"""One dataset of a call of `plan_and_preprocess`: listed, planned, and handed on to have its volumes prepared."""

from __future__ import annotations

import logging
from functools import cached_property
from pathlib import Path
from typing import Any

from nnssl.core.errors import UserError
from nnssl.core.files import checked, write_json
from nnssl.core.plans_schema import PlansFile
from nnssl.data.copies import copied_dataset_json, follow_raw, split_is_missing
from nnssl.data.dataset_volumes import DatasetVolumes
from nnssl.data.fingerprint import MADE_FROM, is_outdated, make_fingerprint, read_fingerprint, scan_dataset
from nnssl.data.folders import dataset_argument, dataset_id
from nnssl.data.guard import Images, check_datasets
from nnssl.data.inventory import data_folders
from nnssl.data.planning import (
    PlanRequest,
    Plans,
    can_be_made,
    load_plans,
    make_plans,
    merged,
    planner_of,
    refuse_other_content,
    renamed,
    same_plans,
)
from nnssl.data.raw import RawDataset, list_dataset, schemes_of
from nnssl.data.raw_files import RawFiles
from nnssl.data.reader import choose_orientation, find_reader, may_reorient, was_reoriented
from nnssl.data.report import (
    Findings,
    PreparedDataset,
    RunOptions,
    nothing_usable,
    read_settings,
    refuse_left_out,
    report_file,
    resolved_configuration,
    settings_in_folder,
    write_report,
    write_settings,
)
from nnssl.data.storage import body_folder, dataset_lock, done_cases

logger = logging.getLogger("nnssl")


class DatasetRun:
    """Lists the dataset; then `plan`, `take_plans` or `adopt_plans`, and `volumes.prepare` or `finish`.

    What exists and fits is read without a lock, so that the folder may be read-only.
    """

    def __init__(self, options: RunOptions, name: str) -> None:
        self.options, self.home = options, options.preprocessed / name
        self.dataset = list_dataset(options.raw, name, self.home)
        self.found = Findings(dict(self.dataset.left_out))
        self.plans: Plans = {}
        self.reorient = False  # whether images are turned to RAS as they are read

    @cached_property
    def reader(self) -> Any:
        """nnU-Net's reader for the raw images."""
        return find_reader(self.dataset, self.reorient)

    @cached_property
    def files(self) -> RawFiles:
        """What the file system tells of the raw files."""
        return RawFiles.of(self.dataset.cases)

    @cached_property
    def volumes(self) -> DatasetVolumes:
        """The volumes of the plans, which must be known."""
        folder = self.home / resolved_configuration(self.plans, self.options.configuration).data_identifier
        return DatasetVolumes(self.options, self.dataset, self.files, self.plans, folder, self.found)

    def plan(self, request: PlanRequest) -> Plans:
        """Plans of this dataset: those that exist, or new ones."""
        split_is_missing(self.dataset.folder, self.home)  # refuses another split before hours of work
        if not self._take_existing(request):
            with dataset_lock(self.home):
                if not self._take_existing(request):  # another job may have made them meanwhile
                    self._make(request)
        follow_raw(self.dataset, self.home, self.reorient, self._note_labels)
        return self.plans

    def take_plans(self, source: Plans, first: RawDataset, request: PlanRequest) -> None:
        """Use the first dataset's plans, under a name of their own."""
        given, own = (Images(dataset.name, dataset.channel_names) for dataset in (first, self.dataset))
        for warning in check_datasets(given, own, request.allow_other_intensities):
            logger.warning(warning)
        self.adopt_plans(renamed(source, f"{source['plans_name']}From{dataset_id(first.name)}"), request)
        if self.dataset.labelled:
            self.fingerprint()  # stock training copies it, though these plans do not need it

    def adopt_plans(self, plans: Plans, request: PlanRequest) -> None:
        """Use another dataset's plans, under their name.

        Plans that turn images to RAS do so here too, where the files are NIfTI.

        Raises:
            UserError: other plans of that name exist and may not be replaced; or the raw images are missing.
        """
        split_is_missing(self.dataset.folder, self.home)
        existing = self._existing(plans["plans_name"], request)
        wanted = may_reorient(plans, self.dataset)
        self.reorient = choose_orientation(self.dataset, wanted, None if request.overwrite else existing)
        if self.dataset.cases:
            plans = {**plans, "dataset_name": self.dataset.name, "image_reader_writer": self.reader.__name__}
        if existing is None or request.overwrite:
            self._may_plan(request, existing)
            with dataset_lock(self.home):
                self._accept(plans, self._existing(plans["plans_name"], request), request)
        else:
            self._accept(plans, existing, request)
        follow_raw(self.dataset, self.home, self.reorient, self._note_labels)

    def fingerprint(self) -> dict[str, Any]:
        """Content of dataset_fingerprint.json, which is made where it is missing and there are raw images."""
        if self.dataset.cases and (self.options.clean or not self._fingerprint_file.is_file()):
            with dataset_lock(self.home):
                self._scan()
        file = self._fingerprint_file
        return read_fingerprint(file) if file.is_file() else {}

    def finish(self) -> PreparedDataset:
        """Report what planning has found out, where nothing is to be preprocessed."""
        name, folder, found = self.plans["plans_name"], self.volumes.folder, self.found
        file = report_file(self.home, name, self.options.num_parts, self.options.part_id)
        write_report(file, found, self.dataset.ignored, may_write=bool(found.orientations))
        if self.options.strict:
            refuse_left_out(self.dataset.name, found)
        return PreparedDataset(self.dataset.name, name, self.options.configuration, folder, body_folder(folder), [],
                               dict(found.left_out))  # fmt: skip

    @property
    def _fingerprint_file(self) -> Path:
        return self.home / "dataset_fingerprint.json"

    def _existing(self, plans_name: str, request: PlanRequest) -> Plans | None:
        try:
            return load_plans(self.home, plans_name)
        except UserError:
            if request.overwrite:
                refuse_other_content(self.home, plans_name)
                return None
            raise

    def _take_existing(self, request: PlanRequest) -> bool:
        """Use the plans that are asked for if they exist, without writing anything; tell whether they do."""
        existing = self._existing(request.name(), request)
        self.reorient = choose_orientation(self.dataset, request.reorient, None if request.overwrite else existing)
        if existing is None or request.overwrite or self.options.clean:
            return False
        if request.explicit:
            self._may_plan(request, existing)
            if not self._fingerprint_file.is_file():
                return False
            self._accept(self._new_plans(request), existing, request)
        else:
            logger.info("%s: its plans %s exist and are used", self.dataset.name, request.name())
            self._take(existing)
        return True

    def _make(self, request: PlanRequest) -> None:
        """Make plans and save them; make the fingerprint alone where `clean` meets plans that can stay."""
        existing = self._existing(request.name(), request)
        if existing is not None and not (request.explicit or request.overwrite):
            self._scan()
            self._take(existing)
            return
        self._may_plan(request, existing)
        planner_of(request, self.home)  # a mistyped name is refused before all volumes are read
        self._scan(if_outdated=existing is None or request.overwrite)
        self._accept(self._new_plans(request), existing, request)

    def _new_plans(self, request: PlanRequest) -> Plans:
        return make_plans(request, self.dataset.without(self.found.left_out), self.reader, self.home)

    def _may_plan(self, request: PlanRequest, existing: Plans | None) -> None:
        """Raise UserError where new plans cannot be made, or must not be by one of several jobs."""
        folder = self.options.raw / self.dataset.name
        if not self.dataset.cases and not self.found.left_out:
            lacking = "holds no images" if folder.is_dir() else "does not exist"
            raise UserError(f"{self.dataset.name} cannot be planned, since {folder} {lacking}; put the images there, "
                            f"or use plans that it has with -p")  # fmt: skip
        if not self.dataset.cases:
            raise UserError(nothing_usable(self.dataset.name, self.found.left_out))
        if self.options.num_parts > 1 and (existing is None or request.overwrite):
            raise UserError(f"the parts of {self.dataset.name} need plans first; run once, before all parts: "
                            f"nnssl_plan_and_preprocess -d {dataset_argument(self.dataset.name)} --no_pp, with the "
                            f"same -p or -pl; then the parts, without --overwrite_plans")  # fmt: skip

    def _scan(self, if_outdated: bool = False) -> None:
        """Make the fingerprint from all volumes unless there is one (with `if_outdated`: one of these raw files)."""
        file = self._fingerprint_file
        as_before = self.reorient == was_reoriented(self.home, self.dataset)
        if file.is_file() and not self.options.clean and as_before:
            content = read_fingerprint(file)  # planners read it without a check
            if not (if_outdated and is_outdated(content, self.dataset, self.files, self.home)):
                return
            logger.info("%s: the raw files have changed since %s was made", self.dataset.name, file)
        logger.info("%s: fingerprint of %d volumes", self.dataset.name, len(self.dataset.cases))
        scans = scan_dataset(self.dataset, self.reader, self.options.num_processes, self.options.show_progress)
        self.found.left_out |= {scan.name: scan.reason for scan in scans if scan.reason is not None}
        self.found.orientations = {scan.name: scan.orientation for scan in scans if scan.reason is None}
        self.found.warnings = {scan.name: scan.warnings for scan in scans if scan.reason is None}
        if self.options.strict:
            refuse_left_out(self.dataset.name, self.found)
        if not self.found.orientations:
            raise UserError(nothing_usable(self.dataset.name, self.found.left_out))
        write_json(file, make_fingerprint(scans, self.dataset) | {MADE_FROM: self.files.digest})

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
            self._take(existing)
            return
        self.plans = merged(new, existing)
        volumes = self.volumes
        if request.overwrite:  # if killed from here on, every volume still has a record of what it was made with
            made_with = settings_in_folder(existing, configuration, volumes.folder.name)
            volumes.note_found(made_with)
            volumes.without_label.note_found(made_with)
        write_json(self.home / f"{name}.json", self.plans)
        if request.overwrite and read_settings(volumes.folder) not in (None, volumes.settings):
            write_settings(volumes.folder, volumes.settings)
        logger.info("%s: plans saved as %s", self.dataset.name, self.home / f"{name}.json")

    def _take(self, plans: Plans) -> None:
        """Use plans that exist.

        Raises:
            UserError: they lack the configuration, or dataset.json has other channels now.
        """
        self._check_configuration(plans)
        self.plans = plans
        if not self.dataset.cases:
            return
        schemes = resolved_configuration(plans, self.options.configuration).normalization_schemes
        names, copy = self.dataset.channel_names, copied_dataset_json(self.home)
        before = schemes_of(copy) if copy else schemes
        if len(schemes) != len(names) or (schemes_of(self.dataset.dataset_json) != before == schemes):
            line = "the line that made them"
            if can_be_made(plans["plans_name"]):
                line = f"nnssl_plan_and_preprocess -d {self.dataset.name} -p {plans['plans_name']}"
            raise UserError(f"the plans {plans['plans_name']} of {self.dataset.name} are for {len(schemes)} channels "
                            f"({', '.join(schemes)}) and its dataset.json names {', '.join(names)}; make them anew: "
                            f"{line} --overwrite_plans, or make others with -overwrite_plans_name")  # fmt: skip

    def _note_labels(self) -> None:
        """Note which labels the volumes of all plans were made with, before dataset.json changes."""
        others, own = data_folders(self.home), self.volumes.folder
        for folder in {*others, own}:
            self.volumes.note_found(None, folder)
        if stale := [folder.name for folder in others if folder != own and done_cases(folder)]:
            logger.warning("%s: the labels have changed, and the volumes in %s know the former ones; before you train "
                           "with their plans, run nnssl_plan_and_preprocess for them too (-p)", self.dataset.name,
                           ", ".join(stale))  # fmt: skip

    def _check_configuration(self, plans: Plans) -> None:
        wanted = self.options.configuration
        three_d = [c for c in plans["configurations"] if not c.startswith("2d")]
        if wanted not in three_d:
            raise UserError(f"the plans {plans['plans_name']} of {self.dataset.name} have no 3-D configuration "
                            f"{wanted}; choose with -c: {', '.join(three_d) or 'they have none'}")  # fmt: skip
