"""What the file system tells of a dataset's raw files: sizes, times and hashes, by which a change is found."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from nnssl.core.files import file_digest
from nnssl.data.raw import RawCase

_READ_TWICE = "changed"  # in place of the hash of a file that changed while it was read: equals no hash


@dataclass(frozen=True)
class FileState:
    """A raw file: bytes, time of its last change in ns, and hash (None before it is read)."""

    size: int
    time: int
    digest: str | None = None

    @property
    def moment(self) -> int:
        """The time in microseconds: not every file system or mount keeps more."""
        return self.time // 1000


@dataclass(frozen=True)
class CaseFiles:
    """The raw files of a case by their role, so that a file that moves within the dataset stays the same."""

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

        A file that has changed since this was taken gets a hash that equals none, so that it counts as changed later.

        Args:
            case: whose files these are.
            known: as many files; the hashes of those with the same size and time are taken over.

        Raises:
            OSError: a file cannot be read.
        """
        before = [None] * len(self.all()) if known is None else known.all()
        digests = [
            b.digest if b and b.digest and (b.size, b.moment) == (s.size, s.moment) else file_digest(file, 16)
            for file, s, b in zip(_names(case), self.all(), before, strict=True)
        ]
        same = self == CaseFiles.of(case)
        states = [replace(s, digest=d if same else _READ_TWICE) for s, d in zip(self.all(), digests, strict=True)]
        return CaseFiles(tuple(states[: len(self.images)]), None if self.label is None else states[-1])

    def changed(self, now: CaseFiles) -> str | None:
        """What is certainly another file, by size or hash, as "image" or "label"; None if nothing is."""
        if len(self.images) != len(now.images):
            return "channels"
        found = [] if not any(map(_differ, self.images, now.images)) else ["image"]
        if (self.label is None) != (now.label is None) or (self.label and now.label and _differ(self.label, now.label)):
            found.append("label")
        return " and ".join(found) or None

    def doubtful(self, now: CaseFiles) -> list[FileState]:
        """Those of this record's files whose time differs, where `changed` finds no difference."""
        return [s for s, n in zip(self.all(), now.all(), strict=True) if s.moment != n.moment]

    def all(self) -> list[FileState]:
        """Images, then the label."""
        return [*self.images, *([] if self.label is None else [self.label])]


@dataclass
class RawFiles:
    """What the file system tells of a dataset's raw files.

    Args:
        states: sizes and times by case, without cases whose files are gone or cannot be looked at.
        gone: cases that dataset.json lists although one of their files does not exist.
        hidden: a file by case that cannot be looked at: a dangling link, a disk that is away.
    """

    states: dict[str, CaseFiles] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    hidden: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, cases: Mapping[str, RawCase]) -> RawFiles:
        """Look at all files, and open none."""
        found = cls()
        for name, case in cases.items():
            try:
                found.states[name] = CaseFiles.of(case)
            except FileNotFoundError as error:
                if os.path.lexists(error.filename) or not os.path.isdir(os.path.dirname(error.filename)):
                    found.hidden[name] = str(error.filename)
                else:
                    found.gone.add(name)
            except OSError as error:
                found.hidden[name] = str(error.filename)
        return found

    @property
    def digest(self) -> str:
        """Of all sizes and times."""
        return digest_of({n: [[s.size, s.moment] for s in files.all()] for n, files in self.states.items()})

    def differ(self, case: str, files: CaseFiles | None) -> bool:
        """Whether the files of a case are others, by their sizes, than those that a volume was made from."""
        now = self.states.get(case)
        return files is not None and now is not None and files.changed(now) is not None


def digest_of(content: Any) -> str:
    """Short hash of anything that JSON can hold; the order of keys does not matter."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()


def _state(file: str) -> FileState:
    status = os.stat(file)
    return FileState(status.st_size, status.st_mtime_ns)


def _names(case: RawCase) -> list[str]:
    return [*case.images, *([] if case.label is None else [case.label])]


def _differ(before: FileState, now: FileState) -> bool:
    known = None not in (before.digest, now.digest)
    return before.size != now.size or (known and before.digest != now.digest)
