"""Volumes without labels beside a labelled dataset (`imagesUn`), for training with a teacher."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from nnssl.core.errors import UserError
from nnssl.data.folder_volumes import FolderVolumes
from nnssl.data.folders import explained_errors_of
from nnssl.data.inventory import Inventory, named
from nnssl.data.pool import default_processes
from nnssl.data.preprocessing import Task
from nnssl.data.raw import UNLABELLED, RawDataset, read_dataset_json, read_unlabelled
from nnssl.data.raw_files import RawFiles
from nnssl.data.records import read_withdrawn, unused_cases, write_withdrawn
from nnssl.data.report import Findings, RunOptions, refuse_other_settings, resolved_configuration, settings_digest
from nnssl.data.storage import body_folder, dataset_lock, done_cases
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
        options = RunOptions(raw.parent, home.parent, configuration, default_processes(), num_parts=1, part_id=0,
                             clean=False, strict=False, show_progress=False)  # fmt: skip
        volumes = _Volumes(options, dataset, RawFiles.of(dataset.cases), plans, folder, Findings(), say)
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


class _Volumes(FolderVolumes):
    """The volumes of `imagesUn` with one configuration of plans; raw files that failed are not tried again."""

    def prepare(self) -> None:
        """Prepare what is not done yet, and name what cannot be used."""
        refuse_other_settings(self.folder, self.settings, f"delete that folder and {body_folder(self.folder).name} to "
                                                          f"make them anew")  # fmt: skip
        cases, left_out = self.dataset.cases, dict(self.dataset.left_out)
        if self.writable and cases:
            self.note_all()
            gone = done_cases(self.folder) - cases.keys()
            if gone != read_withdrawn(self.home, UNLABELLED):
                with dataset_lock(self.home, self.say):
                    write_withdrawn(self.home, gone, UNLABELLED)
        self.found.left_out = {name: why for name in cases if (why := self.earlier_reason(name)) is not None}
        self.prepare_cases(cases, UNLABELLED)
        for name, reason in sorted((left_out | self.found.left_out).items()):
            self.say(f"WARNING: {UNLABELLED}/{name} is left out: {reason}")

    def are_settled(self) -> bool:
        """Whether every case has a volume for these plans, or somebody has found out why it cannot have one."""
        self.records.refresh()
        on_disk = done_cases(self.folder)
        return all(self._is_settled(name, name in on_disk) for name in self.dataset.cases)

    def _is_settled(self, name: str, on_disk: bool) -> bool:
        record = self.records.get(name)
        if record is None:
            return on_disk
        return record.reason is not None or (on_disk and record.unfit(self.digest, None) is None)

    def earlier_reason(self, name: str) -> str | None:
        """From the records alone: the reports are about the labelled cases, which may have the same names."""
        record = self.records.get(name)
        return None if record is None or record.files != self.files.states.get(name) else record.reason

    def work(self, tasks: list[Task], sorted_out: Inventory) -> set[str]:
        """As of `FolderVolumes`, announced in the training's own log."""
        if tasks:
            self.say(f"Preprocessing {len(tasks)} volumes of {UNLABELLED} into {self.folder} with the plans of this "
                     f"training, in {self.options.num_processes} processes; this is done once")  # fmt: skip
            if changed := sorted_out.changed:
                self.say(f"{len(changed)} of them changed since they were prepared: {named(changed)}")
        return super().work(tasks, sorted_out)

    def need_to_write(self, what: str) -> None:
        """Raise UserError where the folder may only be read; `what` says why it would be written to."""
        if not self.writable:
            raise UserError(f"{self.home} may only be read, and volumes of {UNLABELLED} must still be prepared there "
                            f"(to {what}); run this training where it can be written to")  # fmt: skip


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
