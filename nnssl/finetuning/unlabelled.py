"""Volumes without labels beside a labelled dataset (`imagesUn`), for training with a teacher."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from nnssl.core.errors import UserError
from nnssl.data.folders import explained_errors_of
from nnssl.data.inventory import Comparison, found_volumes, named
from nnssl.data.pool import default_processes
from nnssl.data.preprocessing import Prepared, PreprocessingJob, SharedWork, prepare_case
from nnssl.data.raw import UNLABELLED, RawCase, RawDataset, first_ct_channel, read_dataset_json, read_unlabelled
from nnssl.data.raw_files import RawFiles, digest_of
from nnssl.data.records import Record, Records, now, read_withdrawn, unused_cases, write_withdrawn
from nnssl.data.report import (
    read_settings,
    refuse_other_settings,
    resolved_configuration,
    settings_digest,
    volume_settings,
    write_settings,
)
from nnssl.data.storage import body_folder, claimed_cases, dataset_lock, done_cases
from nnssl.data.trusted import refuse_untrusted_names

_PREFIX = f"{UNLABELLED}/"  # of an identifier: a labelled case may have the same name
_WAIT_S = 2.0
_FINEST_RATIO = 20  # of the repetitions that make up a share


@dataclass(frozen=True)
class UnlabelledCases:
    """Preprocessed volumes without labels.

    Args:
        folder: nnU-Net's files, `DatasetXXX/<data_identifier>_unlabelled`.
        cases: their names, sorted.
    """

    folder: Path
    cases: list[str]


def prepare_unlabelled(
    plans: dict[str, Any], configuration: str, home: Path, is_main: bool, say: Callable[[str], Any]
) -> UnlabelledCases:
    """Preprocess the dataset's `imagesUn` as its labelled cases were, unless that is done, in a folder of its own.

    Fingerprint, plans and the folder that stock training reads are not touched. What cannot be used is named and left
    out. Where the raw images are gone, what was preprocessed before is taken. Trainings of several folds share the
    work.

    Args:
        plans: of the training.
        configuration: of the plans.
        home: the dataset's folder in nnUNet_preprocessed.
        is_main: whether this process does it; others wait for it.
        say: takes a sentence for the user.

    Raises:
        UserError: the folder holds no images, or volumes made with other plans; or it cannot be written to; the plans
            name what nnU-Net must not call.
    """
    resolved = resolved_configuration(plans, configuration)
    refuse_untrusted_names(plans, resolved.configuration)
    folder = home / f"{resolved.data_identifier}_unlabelled"
    raw = Path(os.environ.get("nnUNet_raw") or os.devnull) / plans["dataset_name"]
    if (raw / UNLABELLED).is_dir():
        content = {key: value for key, value in read_dataset_json(raw).items() if key != "dataset"}
        dataset = RawDataset(raw.name, raw, content, *read_unlabelled(raw, content), labelled=False)
        volumes = _Volumes(plans, configuration, folder, dataset, say)
        if is_main:
            with explained_errors_of(home.parent):
                volumes.prepare()
        while not volumes.are_settled():  # no collective waits meanwhile, so that nothing times out
            time.sleep(_WAIT_S)
        names = set(dataset.cases)
    else:
        names = done_cases(folder)
    unused = unused_cases(folder, settings_digest(plans, configuration))
    return UnlabelledCases(folder, sorted((done_cases(folder) & names) - unused.keys()))


@dataclass
class _Volumes:
    """The volumes of `imagesUn` with one configuration of plans."""

    plans: dict[str, Any]
    configuration: str
    folder: Path
    dataset: RawDataset
    say: Callable[[str], Any]

    def __post_init__(self) -> None:
        self.settings = volume_settings(self.plans, self.configuration)
        self.digest = digest_of(self.settings)
        self.files, self.records = RawFiles.of(self.dataset.cases), Records(self.folder)

    def prepare(self) -> None:
        """Prepare what is not done yet, and name what cannot be used."""
        home, cases = self.folder.parent, self.dataset.cases
        refuse_other_settings(self.folder, self.settings, f"delete that folder and {body_folder(self.folder).name} to "
                                                          f"make them anew")  # fmt: skip
        left_out, may_write = dict(self.dataset.left_out), self.records.may_write
        comparison = Comparison(self.folder, self.dataset, self.files, self.records, self.digest, "",
                                default_processes(), False)  # fmt: skip
        if may_write and cases:
            self._note()
        found = comparison.sort_out(cases, anew=False, may_note=may_write)
        failed = {name: why for name in found.todo if (why := self._failed(name)) is not None}
        todo = [cases[name] for name in sorted(found.todo - failed.keys())]
        if todo and not may_write:
            raise UserError(f"{home} may only be read, and volumes of {UNLABELLED} are still to be prepared there "
                            f"({named([case.name for case in todo])}); run this training where it can be written "
                            f"to")  # fmt: skip
        if may_write:
            self.records.renew(found.noted)
        left_out |= failed | self._work(todo, found.changed)
        for name, reason in sorted(left_out.items()):
            self.say(f"WARNING: {UNLABELLED}/{name} is left out: {reason}")

    def are_settled(self) -> bool:
        """Whether every case has a volume for these plans, or somebody has found out why it cannot have one."""
        self.records.refresh()
        on_disk = done_cases(self.folder)
        return all(self._is_settled(name, name in on_disk) for name in self.dataset.cases)

    def _note(self) -> None:
        """What is there has a record, and it is known which cases have been taken out of the raw dataset."""
        home, on_disk = self.folder.parent, done_cases(self.folder)
        gone = on_disk - self.dataset.cases.keys()
        new = found_volumes(on_disk - claimed_cases(self.folder), self.files, self.records, self.digest, None, {})
        if not new and read_settings(self.folder) == self.settings and gone == read_withdrawn(home, UNLABELLED):
            return
        with dataset_lock(home, self.say):
            self.records.append(new)
            write_settings(self.folder, self.settings)
            write_withdrawn(home, gone, UNLABELLED)

    def _work(self, todo: list[RawCase], changed: Mapping[str, str]) -> dict[str, str]:
        """Why cases could not be used, by name."""
        if not todo:
            return {}
        processes = default_processes()
        self.say(f"Preprocessing {len(todo)} volumes of {UNLABELLED} into {self.folder} with the plans of this "
                 f"training, in {processes} processes; this is done once")  # fmt: skip
        if changed:
            self.say(f"{len(changed)} of them changed since they were prepared: {named(changed)}")
        ct_channel = self.dataset.ct_channel
        if ct_channel is None:
            schemes = resolved_configuration(self.plans, self.configuration).normalization_schemes
            ct_channel = first_ct_channel(schemes)
        job = PreprocessingJob(self.plans, self.configuration, self.dataset.dataset_json, self.folder, ct_channel)
        work = SharedWork(self.folder, self.records, self.digest, partial(prepare_case, job=job), self._record,
                          changed, self.say)  # fmt: skip
        return {r.case: r.reason for r in work.run(todo, processes, show_progress=False) if r.reason is not None}

    def _record(self, case: Prepared) -> Record:
        return Record(case.name, case.files, self.digest, None, case.orientation, now(), case.reason)

    def _is_settled(self, name: str, on_disk: bool) -> bool:
        record = self.records.get(name)
        if record is None:
            return on_disk
        return record.reason is not None or (on_disk and record.unfit(self.digest, None) is None)

    def _failed(self, name: str) -> str | None:
        """Why the files that are there could not be made into a volume."""
        record = self.records.get(name)
        return None if record is None or record.files != self.files.states.get(name) else record.reason


class WithUnlabelled:
    """A data set of labelled cases to which volumes without labels are added, as nnU-Net's loader uses one.

    The loader draws identifiers at random, so that repeating them sets the share of either kind. Volumes without labels
    have no foreground: they are cropped at random. Their label map is nnU-Net's, -1 outside of the image's nonzero
    region and 0 inside, which its transforms turn into background.

    Args:
        labelled: data set of the labelled cases.
        unlabelled: data set of the others.
        share: of the patches that come from those, above 0 and below 1 (rounded to ratios of small numbers).
    """

    def __init__(self, labelled: Any, unlabelled: Any, share: float) -> None:
        self._labelled, self._unlabelled = labelled, unlabelled
        odds = share / (1 - share) * len(labelled.identifiers) / len(unlabelled.identifiers)
        ratio = Fraction(odds).limit_denominator(_FINEST_RATIO) or Fraction(1, _FINEST_RATIO)
        named = [f"{_PREFIX}{name}" for name in unlabelled.identifiers]
        self.identifiers: list[str] = [*labelled.identifiers] * ratio.denominator + named * ratio.numerator

    def load_case(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """Image, label map, label map of the previous stage or None, and properties."""
        if not is_unlabelled(identifier):
            case: tuple[Any, Any, Any, dict[str, Any]] = self._labelled.load_case(identifier)
            return case
        image, seg, previous, properties = self._unlabelled.load_case(identifier.removeprefix(_PREFIX))
        return image, seg, previous, {**properties, "class_locations": defaultdict(list)}

    def __getitem__(self, identifier: str) -> tuple[Any, Any, Any, dict[str, Any]]:
        """As `load_case`."""
        return self.load_case(identifier)


def is_unlabelled(identifier: str) -> bool:
    """Tell whether an identifier of `WithUnlabelled`, a key of a batch, is that of a volume without labels."""
    return identifier.startswith(_PREFIX)


def share_of(labelled: int, unlabelled: int) -> float:
    """Default share of the patches without labels: that of the cases, at most a half."""
    return min(0.5, unlabelled / (labelled + unlabelled))
