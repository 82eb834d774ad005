"""The volumes of one planned dataset: what is done is told from what is not, prepared with other jobs, and reported."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from nnssl.core.errors import UserError
from nnssl.data.copies import copied_dataset_json, copy_label, warn_of_split, without_label_copy
from nnssl.data.inventory import Comparison, Inventory, RawFiles, found_volumes, named, withdrawn_cases
from nnssl.data.planning import Plans
from nnssl.data.preprocessing import Prepared, PreprocessingJob, prepare_case
from nnssl.data.raw import RawDataset, first_ct_channel
from nnssl.data.records import Record, Records, digest_of, labels_digest, now
from nnssl.data.report import (
    PreparedDataset,
    RunOptions,
    earlier_reasons,
    earlier_warnings,
    nothing_usable,
    read_settings,
    recalled_orientations,
    refuse_left_out,
    refuse_other_settings,
    report_file,
    resolved_configuration,
    volume_settings,
    write_report,
    write_settings,
)
from nnssl.data.shared_work import SharedWork, Task
from nnssl.data.storage import body_folder, claimed_cases, dataset_lock, done_cases, refuse_older_format
from nnssl.data.trusted import refuse_untrusted_names
from nnssl.data.unused import read_withdrawn, write_withdrawn
from nnssl.data.without_label import prepare_without_label

logger = logging.getLogger("nnssl")


@dataclass
class DatasetVolumes:
    """Prepares the volumes of a dataset that has plans.

    Args:
        options: of the call.
        dataset: raw; without cases where only the preprocessed volumes were kept.
        files: its raw files.
        plans: of the dataset.
        left_out: why cases cannot be used, as the raw dataset's listing and reading for the fingerprint have shown.
        orientations: of cases, as that reading has shown.
        warnings: of cases, likewise.
    """

    options: RunOptions
    dataset: RawDataset
    files: RawFiles
    plans: Plans
    left_out: dict[str, str]
    orientations: Mapping[str, str | None]
    warnings: Mapping[str, Sequence[str]]

    @property
    def home(self) -> Path:
        """The dataset's folder in nnUNet_preprocessed."""
        return self.options.preprocessed / self.dataset.name

    @cached_property
    def folder(self) -> Path:
        """Of the preprocessed volumes."""
        return self.home / resolved_configuration(self.plans, self.options.configuration).data_identifier

    @cached_property
    def writable(self) -> bool:
        """Whether the folder may be written to; where it may not, all has to be ready, and nothing is noted."""
        return self.records.may_write

    @cached_property
    def records(self) -> Records:
        """Of the folder."""
        return Records(self.folder)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the plans make volumes with."""
        return volume_settings(self.plans, self.options.configuration)

    def prepare(self) -> PreparedDataset:
        """Prepare what is not done yet, copy labels for nnU-Net's validation, and report."""
        options, name = self.options, self.dataset.name
        refuse_older_format(self.folder)
        self._settle()
        names = self._part(self._withdraw())
        made_with = digest_of(self.settings), labels_digest(self.dataset.dataset_json)
        comparison = Comparison(self.folder, self.dataset, self.files, self.records, *made_with,
                                options.num_processes, options.show_progress)  # fmt: skip
        found = comparison.sort_out(names, options.overwrite_volumes, self.writable)
        if self.writable:
            self.records.renew(found.noted)
        found.tell(name)
        tasks = self._tasks(found)
        logger.info("%s: %s", name, found.work(len(tasks) - len(found.bodies)))
        ready = found.ready | self._work(tasks, found)
        self._copy_labels(ready)
        if self.dataset.cases and self.writable:
            self.left_out |= prepare_without_label(self.dataset.without_label, names,
                                                   self._job(bool(self.dataset.without_label)),
                                                   options.num_processes, options.show_progress)  # fmt: skip
        self._report(ready)
        if options.num_parts == 1:
            if not ready:
                raise UserError(nothing_usable(name, self.left_out))
            warn_of_split(self.home, ready)
        logger.info("%s: %d volumes ready in %s, %d left out", name, len(ready), self.folder, len(self.left_out))
        return PreparedDataset(name, self.plans["plans_name"], options.configuration, self.folder,
                               body_folder(self.folder), sorted(ready), dict(self.left_out))  # fmt: skip

    def note_found(self, made_with: Mapping[str, Any] | None, folder: Path | None = None) -> None:
        """Add records for volumes that have none; the folder says what they were made with, or else `made_with` does.

        Call it while the dataset is locked, before plans, settings or dataset.json change.

        Args:
            made_with: settings; None where nobody knows.
            folder: of other plans; None for that of these.
        """
        folder = folder or self.folder
        at_work, there, records = claimed_cases(folder), done_cases(folder), Records(folder)
        missing = {name for name in there - at_work if records.get(name) is None}
        known = read_settings(folder) or made_with
        settings = None if known is None else digest_of(known)
        labels = labels_digest(copied_dataset_json(self.home) or self.dataset.dataset_json)
        records.append(found_volumes(there - at_work, self.files, records, settings, labels, self._recalled(missing)))

    def _settle(self) -> None:
        """The folder and these plans agree on what volumes are made with, and every volume has a record."""
        if self.options.overwrite_volumes and not self.files.states:
            raise UserError(f"--overwrite_volumes prepares all volumes of {self.dataset.name} anew, and its raw images "
                            f"are not in {self.dataset.folder}; bring them back, or leave the flag out")  # fmt: skip
        if not self.options.overwrite_volumes:
            refuse_other_settings(self.folder, self.settings,
                                  f"give the plans a name of their own with -overwrite_plans_name, or prepare the "
                                  f"volumes anew: {self._line} --overwrite_volumes")  # fmt: skip
        if not self.writable or (
            read_settings(self.folder) == self.settings
            and all(self.records.get(name) is not None for name in done_cases(self.folder))
        ):
            return
        with dataset_lock(self.home):
            self.note_found(self.settings)
            write_settings(self.folder, self.settings)
        self.records.refresh()

    def _withdraw(self) -> set[str]:
        """Cases that are not used any more, since somebody has taken them out of the raw dataset."""
        withdrawn = withdrawn_cases(self.home, self.dataset, self.files)
        known = read_withdrawn(self.home)
        if withdrawn - known:
            self._need_to_write(f"note that {named(withdrawn - known)} are not used any more, which are gone from "
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
        """The names of the cases that this job sees to."""
        cases = self.dataset.cases
        everything = {*cases, *self.left_out} if cases else done_cases(self.folder)
        part = sorted(everything - withdrawn)[self.options.part_id :: self.options.num_parts]
        self.left_out = {name: self.left_out[name] for name in part if name in self.left_out}
        return part

    def _tasks(self, found: Inventory) -> list[Task]:
        """What is to be prepared; the others are left out for the reason that was found before."""
        reasons = {name: self.left_out[name] for name in found.todo if name in self.left_out}
        if not self.writable:  # what could not be used cannot be tried again
            reasons = {name: why for name in found.todo if (why := self._earlier_reason(name))} | reasons
        elif reasons:
            self._note_reasons(reasons)
        self.left_out = found.left_out | reasons
        tasks: list[Task] = [self.dataset.cases[name] for name in sorted(found.todo - reasons.keys())]
        tasks += sorted(found.bodies)
        if tasks:
            self._need_to_write(f"prepare {named([t if isinstance(t, str) else t.name for t in tasks])}")
        return tasks

    def _earlier_reason(self, name: str) -> str | None:
        record = self.records.get(name)
        if record is None:
            return earlier_reasons(report_file(self.home, self.plans["plans_name"])).get(name)
        return record.reason if record.files == self.files.states.get(name) else None

    def _note_reasons(self, reasons: Mapping[str, str]) -> None:
        """For readers of the volumes, and for later runs that may not try again."""
        new = [Record(case, self.files.states.get(case), digest_of(self.settings), prepared=now(), reason=reason)
               for case, reason in sorted(reasons.items())]  # fmt: skip
        known = [self.records.get(record.case) for record in new]
        self.records.append(
            record for record, k in zip(new, known, strict=True)
            if k is None or (k.reason, k.files) != (record.reason, record.files)
        )  # fmt: skip

    def _work(self, tasks: list[Task], found: Inventory) -> set[str]:
        """Prepare cases, together with other jobs; those that are ready then."""
        prepared = set()
        replaced = found.todo & done_cases(self.folder)
        make = partial(prepare_case, job=self._job(bool(tasks)))
        finish = partial(self._finish, found.bodies)
        work = SharedWork(self.folder, self.records, digest_of(self.settings), make, finish, replaced)
        if tasks:
            for record in work.run(tasks, self.options.num_processes, self.options.show_progress):
                if record.reason is not None:
                    self.left_out[record.case] = record.reason
                elif record.case not in self.left_out:
                    prepared.add(record.case)
        return prepared

    def _finish(self, bodies: set[str], case: Prepared) -> Record:
        """The record of a case; its label is copied before, since with the record it counts as done."""
        settings, raw, before = digest_of(self.settings), self.dataset.cases.get(case.name), self.records.get(case.name)
        if case.name in bodies:  # the volume stays as it is, and fit for whoever needs no mask
            if case.reason is not None:
                self.left_out[case.name] = case.reason
            known = before or Record(case.name, None, settings)
            return replace(known, orientation=case.orientation or known.orientation, prepared=now())
        labels = labels_digest(self.dataset.dataset_json) if raw is not None and raw.label is not None else None
        if raw is not None and case.reason is None:
            copy_label(raw, self.home, self.dataset.dataset_json["file_ending"])
        return Record(case.name, case.files, settings, labels, case.orientation, now(), case.reason,
                      warnings=case.warnings)  # fmt: skip

    def _job(self, anything: bool) -> PreprocessingJob:
        """What cases are prepared with; looked at where there is anything to prepare, which costs nnU-Net's imports."""
        options, dataset = self.options, self.dataset
        content = {key: value for key, value in dataset.dataset_json.items() if key != "dataset"}
        resolved = resolved_configuration(self.plans, options.configuration)
        if anything:
            refuse_untrusted_names(self.plans, resolved.configuration, self.home / f"{self.plans['plans_name']}.json")
        schemes = resolved.normalization_schemes
        ct_channel = dataset.ct_channel if dataset.ct_channel is not None else first_ct_channel(schemes)
        return PreprocessingJob(self.plans, options.configuration, content, self.folder, ct_channel)

    def _copy_labels(self, ready: set[str]) -> None:
        """Label maps that nnU-Net's validation has not got yet."""
        missing = sorted(without_label_copy(self.dataset, self.home) & ready)
        if missing:
            self._need_to_write(f"copy the label maps of {named(missing)}")
        for name in missing:
            copy_label(self.dataset.cases[name], self.home, self.dataset.dataset_json["file_ending"])

    def _report(self, ready: set[str]) -> None:
        options = self.options
        known = {name: record.orientation if (record := self.records.get(name)) else None for name in ready}
        known |= {name: self.orientations.get(name) for name, letters in known.items() if letters is None}
        unknown = {name for name, letters in known.items() if letters is None}
        file = report_file(self.home, self.plans["plans_name"], options.num_parts, options.part_id)
        noted = {name: record.warnings for name in ready if (record := self.records.get(name)) and record.warnings}
        found = {name: said for name, said in self.warnings.items() if name in ready}
        warnings = {**earlier_warnings(file, ready), **found, **noted}
        write_report(file, self.left_out, known | self._recalled(unknown), warnings, self.dataset.ignored,
                     self.writable)  # fmt: skip
        if self.records.crowded and self.writable:
            with dataset_lock(self.home):
                self.records.compact()
        if options.strict:
            refuse_left_out(self.dataset.name, self.left_out, warnings)

    def _recalled(self, cases: set[str]) -> dict[str, str]:
        """Orientations that earlier reports know, those with other plans last."""
        name, options = self.plans["plans_name"], self.options
        files = [report_file(self.home, name), report_file(self.home, name, options.num_parts, options.part_id)]
        return recalled_orientations(self.home, files, cases)

    @property
    def _line(self) -> str:
        """What to type to prepare these volumes."""
        name, configuration = self.plans["plans_name"], self.options.configuration
        return f"nnssl_plan_and_preprocess -d {self.dataset.name} -p {name} -c {configuration}"

    def _need_to_write(self, what: str) -> None:
        if not self.writable:
            raise UserError(f"{self.home} may only be read, and it would have to be written to: to {what}; let "
                            f"nnUNet_preprocessed name a folder of your own, or ask its owner to run "
                            f"{self._line}")  # fmt: skip
