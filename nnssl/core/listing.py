"""What a folder holds, told from the directory alone: no file is opened, since opening a FIFO waits for ever."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

DANGLING = "is a link to a file that does not exist"
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


@dataclass(frozen=True)
class Listing:
    """Entries of a folder.

    Args:
        files: names of regular files and of links to such, sorted.
        odd: why the other entries are none, such as "is a FIFO", by their name as `printable`.
    """

    files: list[str] = field(default_factory=list)
    odd: dict[str, str] = field(default_factory=dict)

    def with_dangling(self) -> Listing:
        """The same, with links to what does not exist among the files: their disk may only be away."""
        dangling = [name for name, why in self.odd.items() if why == DANGLING]
        odd = {name: why for name, why in self.odd.items() if why != DANGLING}
        return Listing(sorted(self.files + dangling), odd)


def list_folder(folder: Path) -> Listing:
    """What `folder` holds; nothing where it is no folder.

    A file whose name is not valid UTF-8 is odd too: JSON, tables and most readers cannot name it.
    """
    if not folder.is_dir():
        return Listing()
    files, odd = [], {}
    for entry in os.scandir(folder):
        # Of a regular file the directory itself says that it is one, without a look at the file.
        reason = why_not_utf8(entry.name) or (None if _is_file(entry) else why_no_file(entry.path))
        if reason is None:
            files.append(entry.name)
        else:
            odd[printable(entry.name)] = reason
    return Listing(sorted(files), dict(sorted(odd.items())))


def why_no_file(path: str | Path) -> str | None:
    """Why there is no regular file to open at `path`, as the end of "it ..."; None where there is one."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return DANGLING if os.path.islink(path) else "does not exist"
    except (OSError, ValueError) as error:  # a loop of links, no permission; a zero byte in a name
        return f"cannot be looked at ({getattr(error, 'strerror', None) or error})"
    return None if stat.S_ISREG(mode) else f"is {_KINDS.get(stat.S_IFMT(mode), 'no regular file')}"


def why_not_utf8(name: str) -> str | None:
    """The reason where a name from the file system is not valid UTF-8; None otherwise."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "has a name that is not UTF-8"
    return None


def printable(name: str) -> str:
    r"""A name from the file system as text: bytes that are not valid UTF-8 as \xe9."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False
