"""What preprocessed volumes were made from (`records.jsonl` beside the body masks), and which must not be used.

A record is one line. Lines are appended in one piece, so that any number of jobs may do so; the last line of a case
counts, and lines that cannot be read are skipped. A volume without a record, such as one of nnU-Net's own, is used as
it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from nnssl.core.files import read_json, replacing, write_json
from nnssl.core.own_files import WithdrawnFile
from nnssl.data.raw import LABELLED, UNLABELLED
from nnssl.data.raw_files import CaseFiles, FileState, digest_of
from nnssl.data.storage import body_folder, done_cases, folder_with_label

_FILE, _WITHDRAWN = "records.jsonl", "nnssl_withdrawn.json"
_DEAD_LINES = 1000  # beyond one a case: more of them are taken out


@dataclass(frozen=True)
class Record:
    """What is known of a case.

    Args:
        case: its name.
        files: raw files of the volume; None for a volume that was found without them.
        settings: digest of `nnssl.data.report.volume_settings`; None if unknown.
        labels: see `labels_digest`; None without a label.
        orientation: letters such as LPS; None if unknown.
        prepared: when, in local time; None for a volume that was found.
        reason: why no volume could be made of these files.
        begun: its volume is being replaced; readers must not trust what is there.
        warnings: see `nnssl.data.check_case.LoadedCase`.
    """

    case: str
    files: CaseFiles | None
    settings: str | None = None
    labels: str | None = None
    orientation: str | None = None
    prepared: str | None = None
    reason: str | None = None
    begun: bool = False
    warnings: tuple[str, ...] = ()

    def unfit(self, settings: str | None, labels: str | None) -> str | None:
        """Why the volume on the disk must not be used with these plans and labels; None where it may."""
        if self.reason is not None:
            return self.reason
        if self.begun:
            return "its volume was being replaced when that was interrupted"
        if None not in (settings, self.settings) and settings != self.settings:
            return "made with other plans"
        if None not in (labels, self.labels) and labels != self.labels:
            return "made when dataset.json had other labels"
        return None


class Records:
    """The records of one folder of volumes; what other jobs append is seen after `refresh`."""

    def __init__(self, folder: Path) -> None:
        self.file = body_folder(folder) / _FILE
        self._known: dict[str, Record] = {}
        self._place = (0, 0)  # which file (inode), and how much of it has been read
        self._lines = 0
        self.refresh()

    def get(self, case: str) -> Record | None:
        """Record of a case; None without one."""
        return self._known.get(case)

    def all(self) -> Collection[Record]:
        """Records of all cases."""
        return self._known.values()

    def refresh(self) -> None:
        """Read what was appended since."""
        try:
            with open(self.file, "rb") as opened:
                status = os.fstat(opened.fileno())
                inode, read = self._place
                if inode != status.st_ino or read > status.st_size:  # another file took its place
                    self._known, read, self._lines = {}, 0, 0
                opened.seek(read)
                content = opened.read()
        except FileNotFoundError:
            return
        whole = content.rpartition(b"\n")[0]  # the rest is still being written, or was cut off
        self._place = (status.st_ino, read + len(whole))
        for line in filter(None, whole.split(b"\n")):
            self._lines += 1
            record = _parsed(line)
            if record is not None:
                self._known[record.case] = record

    def append(self, records: Iterable[Record]) -> None:
        """Add lines in one write; an unfinished line of a killed job before them is closed.

        Raises:
            OSError: the folder cannot be written to, or the disk is full.
        """
        records = list(records)
        if not records:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        content = b"".join(b"\n" + _line(record) + b"\n" for record in records)
        handle = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            while content:
                content = content[os.write(handle, content) :]
        finally:
            os.close(handle)
        self._known.update((record.case, record) for record in records)

    def renew(self, records: Iterable[Record]) -> None:
        """Append findings about volumes, except about those that another job has replaced or is replacing."""
        records = list(records)
        if records:
            self.refresh()
            self.append(record for record in records if _is_of_same_volume(record, self.get(record.case)))

    @property
    def may_write(self) -> bool:
        """Whether lines can be appended, and volumes written beside them."""
        there = [self.file, self.file.parent, self.file.parent.parent]
        return all(os.access(path, os.W_OK) for path in there if path.exists())

    @property
    def crowded(self) -> bool:
        """Whether most lines are dead."""
        return self._lines > 2 * len(self._known) + _DEAD_LINES

    def compact(self) -> None:
        """Keep one line a case; call it while the dataset is locked.

        A line that another job appends meanwhile can get lost: its volume then counts as found, or is made again.
        """
        self.refresh()
        with replacing(self.file) as temporary:
            temporary.write_bytes(b"".join(_line(record) + b"\n" for record in self._known.values()))


def labels_digest(dataset_json: Mapping[str, Any]) -> str:
    """Digest of the values and regions of the labels, which volumes depend on; their names do not count."""
    values = {name: sorted(v) if isinstance(v, list) else v for name, v in dataset_json["labels"].items()}
    ignore = values.pop("ignore", None)
    return digest_of([sorted(json.dumps(value) for value in values.values()), ignore])


def now() -> str:
    """Local time, for `Record.prepared`; fine enough to tell two preparations of a case apart."""
    return datetime.now().astimezone().isoformat()


def _is_of_same_volume(record: Record, known: Record | None) -> bool:
    if known is None or known.begun:
        return False
    return (known.prepared, known.settings) == (record.prepared, record.settings)


def _line(record: Record) -> bytes:
    content = {
        name: value for name, value in vars(record).items() if value not in (None, False, ()) and name != "files"
    }
    if record.files is not None:
        content["images"] = [[s.size, s.time, s.digest] for s in record.files.images]
        if (label := record.files.label) is not None:
            content["label"] = [label.size, label.time, label.digest]
    return json.dumps(content).encode()


def _parsed(line: bytes) -> Record | None:
    try:
        content = json.loads(line)
        images, label = content.pop("images", None), content.pop("label", None)
        state = None if label is None else FileState(*label)
        files = None if images is None else CaseFiles(tuple(FileState(*s) for s in images), state)
        warnings = tuple(map(str, content.pop("warnings", ())))
        known = {key: content[key] for key in content.keys() & Record.__dataclass_fields__.keys()}
        return Record(files=files, warnings=warnings, **known)
    except (ValueError, TypeError, AttributeError):
        return None


def read_withdrawn(home: Path, kind: str = LABELLED) -> set[str]:
    """Cases of a preprocessed dataset whose raw files are gone while others are there."""
    return set(_withdrawn(home).get(kind, ()))


def write_withdrawn(home: Path, cases: Collection[str], kind: str = LABELLED) -> None:
    """Note withdrawn cases, for readers that do not have the raw dataset; unchanged notes are not rewritten.

    Args:
        home: the dataset's folder in nnUNet_preprocessed; locked.
        cases: their names.
        kind: `imagesTr` or `imagesUn`, which may hold cases of the same name.
    """
    if set(cases) == read_withdrawn(home, kind):
        return
    content = {key: names for key, names in (_withdrawn(home) | {kind: sorted(cases)}).items() if names}
    if content:
        write_json(home / _WITHDRAWN, content)
    else:
        (home / _WITHDRAWN).unlink(missing_ok=True)


def _withdrawn(home: Path) -> dict[str, list[str]]:
    file = home / _WITHDRAWN
    fix = "delete it and run nnssl_plan_and_preprocess"
    return dict(read_json(file, WithdrawnFile, fix)) if file.is_file() else {}


def unused_cases(folder: Path, settings: str | None = None, labels: str | None = None) -> dict[str, str]:
    """Cases whose volumes in `folder` must not be read, with the reason.

    Args:
        folder: `DatasetXXX/<data_identifier>` in nnUNet_preprocessed.
        settings: digest of the reader's `volume_settings`; None where any will do.
        labels: `labels_digest` of the reader's dataset.json; None where labels do not matter.
    """
    found = {record.case: record.unfit(settings, labels) for record in Records(folder).all()}
    labelled = folder_with_label(folder)
    kind = UNLABELLED if labelled is None and folder.name.endswith("_unlabelled") else LABELLED
    gone = dict.fromkeys(read_withdrawn(folder.parent, kind), "its raw files are gone")
    gone |= dict.fromkeys(set() if labelled is None else done_cases(labelled), "it has a label now")
    return {case: reason for case, reason in found.items() if reason is not None} | gone
