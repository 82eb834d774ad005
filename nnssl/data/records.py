"""What every preprocessed volume was made from: `records.jsonl` beside the body masks, one line a case.

Lines are appended in one piece, so that any number of jobs may do so; the last line of a case counts, and a line that
cannot be read is as if it were not there. A volume without a record, such as one of nnU-Net's own, is used as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from nnssl.data.raw import RawCase
from nnssl.data.storage import body_folder

_FILE = "records.jsonl"
_READ_TWICE = "changed"  # in place of the hash of a file that changed while it was read: equals no hash
_DEAD_LINES = 1000  # beyond one a case: more of them are taken out


@dataclass(frozen=True)
class FileState:
    """A raw file: bytes, time of its last change in ns, and hash, None where nobody has read it yet."""

    size: int
    time: int
    digest: str | None = None

    @property
    def moment(self) -> int:
        """The time in microseconds: not every file system, and not every mount of one, keeps more."""
        return self.time // 1000


@dataclass(frozen=True)
class CaseFiles:
    """The raw files of a case, by what they are for: a file that moves within the dataset is the same."""

    images: tuple[FileState, ...]
    label: FileState | None = None

    @classmethod
    def of(cls, case: RawCase) -> CaseFiles:
        """What the file system tells; nothing is read.

        Raises:
            OSError: a file is missing or cannot be looked at.
        """
        return cls(tuple(map(_state, case.images)), None if case.label is None else _state(case.label))

    def hashed(self, case: RawCase, known: CaseFiles | None = None) -> CaseFiles:
        """The same with the files' hashes, for which they are read.

        A file that has changed since this was taken gets a hash that no file has, so that it counts as changed for
        whoever compares it later.

        Args:
            case: whose files these are.
            known: the same number of files; hashes of those that have its size and time are taken from there.

        Raises:
            OSError: a file cannot be read.
        """
        before = [None] * len(self.all()) if known is None else known.all()
        digests = [
            b.digest if b and b.digest and (b.size, b.moment) == (s.size, s.moment) else _digest(file)
            for file, s, b in zip(_names(case), self.all(), before, strict=True)
        ]
        same = self == CaseFiles.of(case)
        states = [replace(s, digest=d if same else _READ_TWICE) for s, d in zip(self.all(), digests, strict=True)]
        return CaseFiles(tuple(states[: len(self.images)]), None if self.label is None else states[-1])

    def changed(self, now: CaseFiles) -> str | None:
        """What is another file for certain, by size or hash, as "image" or "label"; None where nothing is."""
        if len(self.images) != len(now.images):
            return "channels"
        found = [] if not any(map(_differ, self.images, now.images)) else ["image"]
        if (self.label is None) != (now.label is None) or (self.label and now.label and _differ(self.label, now.label)):
            found.append("label")
        return " and ".join(found) or None

    def doubtful(self, now: CaseFiles) -> list[FileState]:
        """Of files that `changed` calls the same: those of this record whose time is another one."""
        return [s for s, n in zip(self.all(), now.all(), strict=True) if s.moment != n.moment]

    def all(self) -> list[FileState]:
        """Images, then the label."""
        return [*self.images, *([] if self.label is None else [self.label])]


@dataclass(frozen=True)
class Record:
    """What is known of a case.

    Args:
        case: its name.
        files: what it was made from; None for a volume that was found without its raw files.
        settings: digest of `nnssl.data.report.volume_settings`; None where it is not known.
        labels: see `labels_digest`; None without a label.
        orientation: letters such as LPS; None where it is unknown.
        prepared: when, in local time; None for a volume that was found.
        reason: why no volume could be made of these files.
        begun: its volume is being replaced: no reader may trust what is there.
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
        """Why the volume that is on the disk must not be used with these plans and labels; None where it may."""
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
        """Of one case; None where there is none."""
        return self._known.get(case)

    def all(self) -> Collection[Record]:
        """Of all cases."""
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
        """Append what was found out of volumes, unless another job has begun or ended to replace them meanwhile."""
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

        A line that another job appends meanwhile can get lost: its case then counts as found, or is prepared again.
        """
        self.refresh()
        temporary = self.file.with_name(f".{_FILE}.{os.getpid()}")
        try:
            temporary.write_bytes(b"".join(_line(record) + b"\n" for record in self._known.values()))
            os.replace(temporary, self.file)
        finally:
            temporary.unlink(missing_ok=True)


def digest_of(content: Any) -> str:
    """Short hash of anything that JSON can hold; the order of keys does not matter."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()


def labels_digest(dataset_json: Mapping[str, Any]) -> str:
    """Digest of the values and regions of the labels, which decide what a volume knows of its classes; not of names."""
    values = {name: sorted(v) if isinstance(v, list) else v for name, v in dataset_json["labels"].items()}
    ignore = values.pop("ignore", None)
    return digest_of([sorted(json.dumps(value) for value in values.values()), ignore])


def now() -> str:
    """Local time, for `Record.prepared`; fine enough to tell two preparations of a case apart."""
    return datetime.now().astimezone().isoformat()


def _state(file: str) -> FileState:
    status = os.stat(file)
    return FileState(status.st_size, status.st_mtime_ns)


def _names(case: RawCase) -> list[str]:
    return [*case.images, *([] if case.label is None else [case.label])]


def _digest(file: str) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open(file, "rb") as opened:
        while chunk := opened.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _differ(before: FileState, now: FileState) -> bool:
    known = None not in (before.digest, now.digest)
    return before.size != now.size or (known and before.digest != now.digest)


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
