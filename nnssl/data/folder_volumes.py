"""The volumes of one folder: what is done is told from what is not, and prepared together with other jobs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from nnssl.core.errors import UserError
from nnssl.data.copies import copied_dataset_json, copy_label
from nnssl.data.inventory import Comparison, Inventory, found_volumes, named
from nnssl.data.planning import Plans
from nnssl.data.preprocessing import Prepared, PreprocessingJob, SharedWork, Task, prepare_case
from nnssl.data.raw import RawDataset, first_ct_channel
from nnssl.data.raw_files import RawFiles, digest_of
from nnssl.data.records import Record, Records, labels_digest, now
from nnssl.data.report import (
    Findings,
    RunOptions,
    read_report,
    read_settings,
    recalled_orientations,
    report_file,
    resolved_configuration,
    volume_settings,
    write_settings,
)
from nnssl.data.storage import claimed_cases, dataset_lock, done_cases
from nnssl.data.trusted import refuse_untrusted_names

logger = logging.getLogger("nnssl")


@dataclass
class FolderVolumes:
    """Prepares the volumes of a dataset that has plans, in one folder.

    Args:
        options: of the call.
        dataset: raw; without cases where only the preprocessed volumes were kept.
        files: its raw files.
        plans: of the dataset.
        folder: of the preprocessed volumes.
        found: what the raw dataset's listing, and reading it for the fingerprint, have told of its cases.
        say: takes a sentence on which other job is waited for.
    """

    options: RunOptions
    dataset: RawDataset
    files: RawFiles
    plans: Plans
    folder: Path
    found: Findings
    say: Callable[[str], object] = logger.info

    @property
    def home(self) -> Path:
        """The dataset's folder in nnUNet_preprocessed."""
        return self.folder.parent

    @cached_property
    def writable(self) -> bool:
        """Whether the folder may be written to; where it may not, everything must be ready, and nothing is noted."""
        return self.records.may_write

    @cached_property
    def records(self) -> Records:
        """Of the folder."""
        return Records(self.folder)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the plans make volumes with."""
        return volume_settings(self.plans, self.options.configuration)

    @cached_property
    def digest(self) -> str:
        """Of the settings."""
        return digest_of(self.settings)

    @cached_property
    def labels(self) -> str:
        """Digest of the raw dataset's labels."""
        return labels_digest(self.dataset.dataset_json)

    def note_found(self, made_with: Mapping[str, Any] | None, folder: Path | None = None) -> None:
        """Add records for volumes that have none; the folder says what they were made with, or else `made_with` does.

        Call it while the dataset is locked, before plans, settings or dataset.json change.

        Args:
            made_with: settings; None where nobody knows.
            folder: of other plans; None for that of these.
        """
        folder = folder or self.folder
        there, records = done_cases(folder) - claimed_cases(folder), Records(folder)
        recalled = self.recalled(name for name in there if records.get(name) is None)
        known = read_settings(folder) or made_with
        settings = None if known is None else digest_of(known)
        labels = labels_digest(copied_dataset_json(self.home) or self.dataset.dataset_json)
        records.append(found_volumes(there, self.files, records, settings, labels, recalled))

    def note_all(self) -> None:
        """Every volume has a record, and the folder the settings."""
        recorded = all(self.records.get(name) is not None for name in done_cases(self.folder))
        if not recorded or read_settings(self.folder) != self.settings:
            with dataset_lock(self.home, self.say):
                self.note_found(self.settings)
                write_settings(self.folder, self.settings)
            self.records.refresh()

    def prepare_cases(self, names: Collection[str], title: str) -> set[str]:
        """Those of some cases whose volumes are ready, after what was missing has been prepared."""
        options = self.options
        comparison = Comparison(self.folder, self.dataset, self.files, self.records, self.digest, self.labels,
                                options.num_processes, options.show_progress)  # fmt: skip
        sorted_out = comparison.sort_out(names, options.overwrite_volumes, self.writable)
        if self.writable:
            self.records.renew(sorted_out.noted)
        sorted_out.tell(title)
        tasks = self._tasks(sorted_out)
        logger.info("%s: %s", title, sorted_out.work(len(tasks) - len(sorted_out.bodies)))
        return sorted_out.ready | self.work(tasks, sorted_out)

    def _tasks(self, sorted_out: Inventory) -> list[Task]:
        """What is to be prepared; the others are left out for the reason that was found before."""
        reasons = {name: why for name in sorted_out.todo if (why := self.found.left_out.get(name))}
        if not self.writable:  # what could not be used cannot be tried again
            reasons = {name: why for name in sorted_out.todo if (why := self.earlier_reason(name))} | reasons
        elif reasons:
            self._note_reasons(reasons)
        self.found.left_out = sorted_out.left_out | reasons
        tasks: list[Task] = [self.dataset.cases[name] for name in sorted(sorted_out.todo - reasons.keys())]
        tasks += sorted(sorted_out.bodies)
        if tasks:
            self.need_to_write(f"prepare {named([t if isinstance(t, str) else t.name for t in tasks])}")
        return tasks

    def earlier_reason(self, name: str) -> str | None:
        """Why the raw files that are there could not be made into a volume, as far as it is known."""
        record = self.records.get(name)
        if record is None:
            reason: str | None = read_report(report_file(self.home, self.plans["plans_name"]))["left_out"].get(name)
            return reason
        return record.reason if record.files == self.files.states.get(name) else None

    def _note_reasons(self, reasons: Mapping[str, str]) -> None:
        """For readers of the volumes, and for later runs that may not try again."""
        for case, reason in sorted(reasons.items()):
            known, files = self.records.get(case), self.files.states.get(case)
            if known is None or (known.reason, known.files) != (reason, files):
                self.records.append([Record(case, files, self.digest, prepared=now(), reason=reason)])

    def work(self, tasks: list[Task], sorted_out: Inventory) -> set[str]:
        """Prepare cases, together with other jobs; those that are ready then."""
        prepared: set[str] = set()
        if not tasks:  # nnU-Net's imports take seconds
            return prepared
        replaced = sorted_out.todo & done_cases(self.folder)
        finish = partial(self._finish, sorted_out.bodies)
        work = SharedWork(self.folder, self.records, self.digest, partial(prepare_case, job=self._job()), finish,
                          replaced, self.say)  # fmt: skip
        for record in work.run(tasks, self.options.num_processes, self.options.show_progress):
            if record.reason is not None:
                self.found.left_out[record.case] = record.reason
            elif record.case not in self.found.left_out:
                prepared.add(record.case)
        return prepared

    def _finish(self, bodies: set[str], case: Prepared) -> Record:
        """The record of a case; its label is copied before, since with the record it counts as done."""
        raw = self.dataset.cases.get(case.name)
        if case.name in bodies:  # the volume stays as it is, and fit for whoever needs no mask
            if case.reason is not None:
                self.found.left_out[case.name] = case.reason
            known = self.records.get(case.name) or Record(case.name, None, self.digest)
            return replace(known, orientation=case.orientation or known.orientation, prepared=now())
        if raw is not None and case.reason is None:
            copy_label(raw, self.home, self.dataset.dataset_json["file_ending"])
        labels = self.labels if raw is not None and raw.label is not None else None
        return Record(case.name, case.files, self.digest, labels, case.orientation, now(), case.reason,
                      warnings=case.warnings)  # fmt: skip

    def _job(self) -> PreprocessingJob:
        """What cases are prepared with."""
        configuration, dataset = self.options.configuration, self.dataset
        content = {key: value for key, value in dataset.dataset_json.items() if key != "dataset"}
        resolved = resolved_configuration(self.plans, configuration)
        refuse_untrusted_names(self.plans, resolved.configuration, self.home / f"{self.plans['plans_name']}.json")
        ct_channel = dataset.ct_channel
        if ct_channel is None:
            ct_channel = first_ct_channel(resolved.normalization_schemes)
        return PreprocessingJob(self.plans, configuration, content, self.folder, ct_channel)

    def recalled(self, cases: Iterable[str]) -> dict[str, str]:
        """Orientations that earlier reports know, those with other plans last."""
        name, options = self.plans["plans_name"], self.options
        files = [report_file(self.home, name), report_file(self.home, name, options.num_parts, options.part_id)]
        return recalled_orientations(self.home, files, cases)

    @property
    def line(self) -> str:
        """What to type to prepare these volumes."""
        name, configuration = self.plans["plans_name"], self.options.configuration
        return f"nnssl_plan_and_preprocess -d {self.dataset.name} -p {name} -c {configuration}"

    def need_to_write(self, what: str) -> None:
        """Raise UserError where the folder may only be read; `what` says for what it would have to be written to."""
        if not self.writable:
            raise UserError(f"{self.home} may only be read, and it would have to be written to: to {what}; let "
                            f"nnUNet_preprocessed name a folder of your own, or ask its owner to run "
                            f"{self.line}")  # fmt: skip
