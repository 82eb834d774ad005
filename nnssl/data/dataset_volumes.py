"""The volumes of one planned dataset: withdrawn cases, those without a label, copies for nnU-Net, and the report."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property

from nnssl.core.errors import UserError
from nnssl.data.copies import copy_label, warn_of_split, without_label_copy
from nnssl.data.folder_volumes import FolderVolumes
from nnssl.data.inventory import named, withdrawn_cases
from nnssl.data.raw_files import RawFiles
from nnssl.data.records import read_withdrawn, write_withdrawn
from nnssl.data.report import (
    Findings,
    PreparedDataset,
    nothing_usable,
    read_report,
    refuse_left_out,
    refuse_other_settings,
    report_file,
    write_report,
)
from nnssl.data.storage import body_folder, dataset_lock, done_cases, folder_without_label, refuse_older_format

logger = logging.getLogger("nnssl")


class DatasetVolumes(FolderVolumes):
    """The volumes that nnU-Net trains on, and in another folder those that lack a label."""

    @cached_property
    def without_label(self) -> FolderVolumes:
        """The volumes of cases without a label in a dataset with labels: for pretraining, in a folder of their own."""
        cases = self.dataset.without_label
        dataset = replace(self.dataset, cases=cases, left_out={}, labelled=False)
        return FolderVolumes(self.options, dataset, RawFiles.of(cases), self.plans, folder_without_label(self.folder),
                              Findings())  # fmt: skip

    def prepare(self) -> PreparedDataset:
        """Prepare what is not done yet, copy labels for nnU-Net's validation, and report."""
        options, name = self.options, self.dataset.name
        refuse_older_format(self.folder)
        self._settle()
        part = self._part(self._withdraw())
        ready = self.prepare_cases(part, name)
        self._copy_labels(ready)
        if self.dataset.cases and self.writable:
            self._prepare_without_label(part)
        self._report(ready)
        left_out = self.found.left_out
        if options.num_parts == 1:
            if not ready:
                raise UserError(nothing_usable(name, left_out))
            warn_of_split(self.home, ready)
        logger.info("%s: %d volumes ready in %s, %d left out", name, len(ready), self.folder, len(left_out))
        return PreparedDataset(name, self.plans["plans_name"], options.configuration, self.folder,
                               body_folder(self.folder), sorted(ready), dict(left_out))  # fmt: skip

    def _settle(self) -> None:
        """Make sure that the folder and the plans agree on how volumes are made, and that every volume has a record."""
        if self.options.overwrite_volumes and not self.files.states:
            raise UserError(f"--overwrite_volumes prepares all volumes of {self.dataset.name} anew, and its raw images "
                            f"are not in {self.dataset.folder}; bring them back, or leave the flag out")  # fmt: skip
        if not self.options.overwrite_volumes:
            refuse_other_settings(self.folder, self.settings,
                                  f"give the plans a name of their own with -overwrite_plans_name, or prepare the "
                                  f"volumes anew: {self.line} --overwrite_volumes")  # fmt: skip
        if self.writable:
            self.note_all()

    def _withdraw(self) -> set[str]:
        """Cases that are not used any more, since they were taken out of the raw dataset."""
        withdrawn = withdrawn_cases(self.home, self.dataset, self.files)
        known = read_withdrawn(self.home)
        if withdrawn - known:
            self.need_to_write(f"note that {named(withdrawn - known)} are not used any more, which are gone from "
                                f"{self.dataset.folder}")  # fmt: skip
        if self.writable and withdrawn != known:
            with dataset_lock(self.home):
                write_withdrawn(self.home, withdrawn)
        withdrawn |= known if not self.writable else set()
        if here := withdrawn & done_cases(self.folder):
            logger.warning(
                "%s: %d cases are gone from nnUNet_raw and are not used any more: %s. Nothing is deleted, and stock "
                "nnUNetv2_train still finds them: to end that, delete NAME.b2nd, NAME_seg.b2nd and NAME.pkl of each in "
                "%s; bring their raw files back to use them again", self.dataset.name, len(here), named(here),
                self.folder,
            )  # fmt: skip
        if hidden := self.files.hidden:
            logger.warning("%s: the raw files of %d cases cannot be looked at (%s); their volumes are used as they are",
                           self.dataset.name, len(hidden), next(iter(hidden.values())))  # fmt: skip
        return withdrawn

    def _part(self, withdrawn: set[str]) -> list[str]:
        """Names of the cases of this job's part."""
        cases, left_out = self.dataset.cases, self.found.left_out
        everything = {*cases, *left_out} if cases else done_cases(self.folder)
        part = sorted(everything - withdrawn)[self.options.part_id :: self.options.num_parts]
        self.found.left_out = {name: left_out[name] for name in part if name in left_out}
        return part

    def _prepare_without_label(self, part: Iterable[str]) -> None:
        """Prepare this job's cases without a label; forget the volumes of cases that have a label now."""
        bare = self.without_label
        cases = bare.dataset.cases
        if not cases and not bare.folder.is_dir():
            return
        bare.note_all()
        bare.records.append([replace(record, reason="no longer a case without a label") for record in bare.records.all()
                             if record.case not in cases and record.reason is None])  # fmt: skip
        if cases:
            ready = bare.prepare_cases(cases.keys() & set(part), f"{self.dataset.name}, cases without label")
            logger.info("%s: ready for pretraining without a label: %d in %s", self.dataset.name, len(ready),
                        bare.folder)  # fmt: skip
        self.found.left_out |= bare.found.left_out

    def _copy_labels(self, ready: set[str]) -> None:
        """Copy the label maps that nnU-Net's validation lacks."""
        missing = sorted(without_label_copy(self.dataset, self.home) & ready)
        if missing:
            self.need_to_write(f"copy the label maps of {named(missing)}")
        for name in missing:
            copy_label(self.dataset.cases[name], self.home, self.dataset.dataset_json["file_ending"])

    def _report(self, ready: set[str]) -> None:
        options, said, letters = self.options, self.found.warnings, self.found.orientations
        file = report_file(self.home, self.plans["plans_name"], options.num_parts, options.part_id)
        records = {name: self.records.get(name) for name in ready}
        known = {name: (record and record.orientation) or letters.get(name) for name, record in records.items()}
        orientations = known | self.recalled(name for name, found in known.items() if found is None)
        noted = {name: record.warnings for name, record in records.items() if record and record.warnings}
        warnings = {name: doubts for name, doubts in {**read_report(file)["warnings"], **said}.items() if name in ready}
        self.found = Findings(self.found.left_out, orientations, warnings | noted)
        write_report(file, self.found, self.dataset.ignored, self.writable)
        if self.records.crowded and self.writable:
            with dataset_lock(self.home):
                self.records.compact()
        if options.strict:
            refuse_left_out(self.dataset.name, self.found)
