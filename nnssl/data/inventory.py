"""The volumes on the disk compared with nnUNet_raw: which cases are ready, which ones to prepare, and why."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from nnssl.data.pool import map_cases
from nnssl.data.raw import LABELLED, RawCase, RawDataset
from nnssl.data.raw_files import CaseFiles, RawFiles
from nnssl.data.records import Record, Records, read_withdrawn
from nnssl.data.storage import done_cases, folder_without_label, masked_cases

_NAMED = 10  # cases that a message names
_FILES_CHANGED = ("image", "label", "image and label", "channels", "unreadable")
_NOT_DATA = ("_body", "_unlabelled")  # endings of folders without labelled cases

logger = logging.getLogger("nnssl")


@dataclass
class Inventory:
    """The cases of one folder of volumes, sorted out.

    Args:
        ready: volume and body mask are there and fit the raw files and the plans.
        bodies: the volume fits, and only the body mask is missing.
        todo: to be prepared, anew or for the first time.
        left_out: why a volume must not be used and cannot be made anew, by case.
        changed: why volumes that are there are prepared again, by case.
        noted: records to append: findings about files, without a change of the volumes.
        unknown: cases whose files have another time, without a hash that tells whether they are the same.
    """

    ready: set[str] = field(default_factory=set)
    bodies: set[str] = field(default_factory=set)
    todo: set[str] = field(default_factory=set)
    left_out: dict[str, str] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    noted: list[Record] = field(default_factory=list)
    unknown: set[str] = field(default_factory=set)

    def tell(self, dataset: str) -> None:
        """Log which volumes are prepared again, and why."""
        files = {case: what for case, what in self.changed.items() if what in _FILES_CHANGED}
        if files:
            logger.info("%s: the raw files of %d volumes changed since they were prepared: %s", dataset, len(files),
                        named([f"{case} ({what})" for case, what in files.items()]))  # fmt: skip
        others = Counter(what for what in self.changed.values() if what not in _FILES_CHANGED)
        for what, count in others.items():
            logger.info("%s: %d volumes are prepared again: %s", dataset, count, what)
        if self.unknown:
            logger.info("%s: the raw files of %d volumes have another time than when these were found, and no hash is "
                        "known to compare: they are taken as unchanged; --overwrite_volumes prepares all anew", dataset,
                        len(self.unknown))  # fmt: skip

    def work(self, volumes: int) -> str:
        """What there is to do, with the number of whole volumes; a body mask leaves its volume as it is."""
        masks, ready = len(self.bodies), len(self.ready)
        parts = [f"{_count(volumes, 'volume')} to preprocess"] if volumes else []
        if masks:
            others = " for volumes that stay as they are" if volumes else ", volumes are used as they are"
            parts.append(f"{_count(masks, 'body mask')} to make{others}")
        return ", ".join([*(parts or ["nothing to preprocess"]), *([f"{ready} are done"] if ready else [])])


@dataclass(frozen=True)
class Comparison:
    """Compares a folder of volumes with the raw dataset and the plans.

    Args:
        folder: of the volumes.
        dataset: raw; without cases where it is not there.
        files: of its cases.
        records: of the folder.
        settings: digest of the plans' settings.
        labels: digest of dataset.json's labels.
        num_processes: for hashing.
        show_progress: whether to draw a bar.
    """

    folder: Path
    dataset: RawDataset
    files: RawFiles
    records: Records
    settings: str
    labels: str
    num_processes: int
    show_progress: bool

    def sort_out(self, names: Iterable[str], anew: bool, may_note: bool) -> Inventory:
        """Sort out cases; files that differ in time alone are read and compared by their hash.

        Args:
            names: the cases.
            anew: whether all volumes are to be made again.
            may_note: whether the folder can be written to; hashes that cannot be noted are not computed.
        """
        found, doubtful = Inventory(), []
        on_disk, masked = done_cases(self.folder), masked_cases(self.folder)
        for name in names:
            why = self._why_unfit(name) if name in on_disk else None
            if name not in self.dataset.cases:
                if why is not None or name not in on_disk:
                    found.left_out[name] = why or self.dataset.left_out[name]
                    self._note_reason(name, found)
                    continue
            elif name not in on_disk or why is not None or (anew and name in self.files.states):
                found.todo.add(name)
                if why is not None:
                    found.changed[name] = why
                continue
            elif self._is_doubtful(name, may_note, found):
                doubtful.append(name)
            (found.ready if name in masked else found.bodies).add(name)
        for name, what in self._different(doubtful, found):
            found.ready.discard(name)
            found.bodies.discard(name)
            found.todo.add(name)
            found.changed[name] = what
        return found

    def _why_unfit(self, name: str) -> str | None:
        """Why the volume on the disk differs from one made now, as far as that shows without reading files."""
        record, case = self.records.get(name), self.dataset.cases.get(name)
        if record is None:
            return None
        if case is None:
            listed = self.dataset.left_out.get(name) if record.files is not None else None
            return listed or record.unfit(self.settings, None)
        if record.files is not None and name in self.files.states:
            changed = record.files.changed(self.files.states[name])
            if changed is not None:
                return changed
        return record.unfit(self.settings, self.labels if case.label else None)

    def _note_reason(self, name: str, found: Inventory) -> None:
        """Let readers of the volume know that its raw files no longer make a case."""
        record, reason = self.records.get(name), self.dataset.left_out.get(name)
        if record is not None and reason is not None and record.reason != reason:
            found.noted.append(replace(record, reason=reason))

    def _is_doubtful(self, name: str, may_note: bool, found: Inventory) -> bool:
        record, now = self.records.get(name), self.files.states.get(name)
        if record is None or now is None:
            return False
        if record.files is None:
            found.noted.append(replace(record, files=now))
            return False
        others = record.files.doubtful(now)
        if any(state.digest is None for state in others):
            found.unknown.add(name)
            return may_note
        return bool(others)

    def _different(self, names: list[str], found: Inventory) -> Iterable[tuple[str, str]]:
        """Cases whose files differ by their hash, and which file does; the others' records are renewed."""
        records = {name: record for name in names if (record := self.records.get(name)) is not None}
        items = [_ToHash(name, self.dataset.cases[name], record.files) for name, record in records.items()]
        title = "Comparing files that have another time"
        for name, now, what in map_cases(_compared, items, self.num_processes, title, self.show_progress):
            if what is None:
                found.noted.append(replace(records[name], files=now))
            else:
                yield name, what


@dataclass(frozen=True)
class _ToHash:
    name: str
    case: RawCase
    before: CaseFiles | None


def _compared(item: _ToHash) -> tuple[str, CaseFiles | None, str | None]:
    """Name of a case, its files with hashes, and which of them differs."""
    try:
        now = CaseFiles.of(item.case).hashed(item.case, item.before)
    except OSError:
        return item.name, None, "unreadable"
    return item.name, now, None if item.before is None else item.before.changed(now)


def found_volumes(
    cases: Iterable[str], files: RawFiles, records: Records, settings: str | None, labels: str | None,
    orientations: Mapping[str, str | None],
) -> list[Record]:  # fmt: skip
    """Records for volumes without one (with the files as they are now, without hashes) or without settings.

    Args:
        cases: names of the volumes.
        files: of the raw dataset.
        records: of the folder.
        settings: digest of what the volumes were made with; None if unknown.
        labels: digest of the labels that they were made with.
        orientations: by case, as far as known.
    """
    found = []
    for name in sorted(cases):
        record, now = records.get(name), files.states.get(name)
        if record is None:
            of_label = None if now is not None and now.label is None else labels
            found.append(Record(name, now, settings, of_label, orientations.get(name)))
        elif record.settings is None and settings is not None:
            found.append(replace(record, settings=settings))
    return found


def data_folders(home: Path) -> list[Path]:
    """Folders of preprocessed labelled or unlabelled cases of a dataset, of any plans."""
    return [
        Path(entry.path)
        for entry in sorted(os.scandir(home), key=lambda entry: entry.name)
        if entry.is_dir() and not entry.name.startswith(".") and not entry.name.endswith(_NOT_DATA)
        and "_embeddings_" not in entry.name and entry.name != "gt_segmentations"
    ]  # fmt: skip


def withdrawn_cases(home: Path, dataset: RawDataset, files: RawFiles) -> set[str]:
    """Cases with volumes that are gone from a raw dataset which itself is there.

    If it is not there, or has no usable case, the cases that were withdrawn before are returned.
    """
    if not files.states:
        return read_withdrawn(home)
    listed = (dataset.cases.keys() | dataset.left_out.keys()) - files.gone
    on_disk: set[str] = set()
    for folder in data_folders(home):
        on_disk |= done_cases(folder) | done_cases(folder_without_label(folder))
    gone = on_disk - listed
    return gone - _of_another_ending(dataset) if gone else gone


def _of_another_ending(dataset: RawDataset) -> set[str]:
    """Cases whose files only have another ending: these are not gone."""
    folder, ending = dataset.folder / LABELLED, dataset.dataset_json["file_ending"]
    files = [entry.name for entry in os.scandir(folder)] if folder.is_dir() else []
    found = [re.match(r"(.+)_\d{4}\.", file) for file in files if not file.endswith(ending)]
    return {match[1] for match in found if match is not None}


def named(cases: Collection[str]) -> str:
    """The first cases of many, for a message."""
    ordered = sorted(cases)
    more = len(ordered) - _NAMED
    return ", ".join(ordered[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
