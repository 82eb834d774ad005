"""What the system refuses (a full disk, a lost mount, a read-only folder) in one sentence, its memory, its folders."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from nnssl.core.names import shown

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_READ_ONLY = (errno.EROFS,)
_FORBIDDEN = (errno.EACCES, errno.EPERM)
_MISSING = (errno.ENOENT, errno.ENOTDIR)
_LOST = tuple(
    getattr(errno, name)
    for name in ("EIO", "ESTALE", "ENOTCONN", "ETIMEDOUT", "EHOSTDOWN", "ENODEV", "ENXIO", "EREMOTEIO", "ESHUTDOWN")
    if hasattr(errno, name)
)
_MANY_FILES = (errno.EMFILE, errno.ENFILE)
# These always come from the system; others do if they name a file.
_ALWAYS = (*_FULL, *_READ_ONLY, errno.EIO, errno.ESTALE, errno.ENOTCONN, *_MANY_FILES, errno.ENOMEM)
_NO_MEMORY = ("can't allocate memory", "std::bad_alloc")  # as torch says it

log = logging.getLogger("nnssl")


def is_first_started() -> bool:
    """Whether this process prints and writes, before the processes have met (`nnssl.core.distributed.is_main`)."""
    return os.environ.get("RANK", "0") == "0"


def why(error: BaseException, again: str = "run the same line again") -> str | None:
    """A sentence with the path, the reason and the fix if the system is to blame; None for other errors.

    Args:
        error: that was caught.
        again: what the user types after the fix, as the end of a sentence.
    """
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM or _is_of_allocator(error):
        return (f"not enough memory ({_short(error)}); end other programs, or use fewer processes or smaller patches, "
                f"and {again}")  # fmt: skip
    if not isinstance(error, OSError) or error.errno is None:
        return None
    name = error.filename if error.filename2 is None else error.filename2
    if name is None and error.errno not in _ALWAYS:
        return None
    return f"{_reason(error.errno, _path(name))}, and {again}"


def name_file(error: OSError, file: Path) -> OSError:
    """The error, with the name of the file if it lacks one."""
    if error.errno is None or error.filename is not None:
        return error
    return OSError(error.errno, os.strerror(error.errno), str(file))


def unreadable(file: Path) -> OSError | None:
    """Why a file cannot be read to its end; None where it can: then only its content can be wrong."""
    try:
        with open(file, "rb", buffering=0) as stream:
            while stream.read(2**20):
                pass
    except OSError as error:
        return name_file(error, file)
    return None


@contextlib.contextmanager
def dispensable(what: str) -> Iterator[None]:
    """For output that a run can do without, such as a picture: warn if the system refuses it."""
    try:
        yield
    except OSError as error:
        log.warning(f"{what} is left out: {why(error, 'it is drawn next time') or error}")


def _reason(number: int, path: str) -> str:
    said = os.strerror(number)
    if number in _FULL:
        return f"no space left to write {path} ({said}); make room"
    if number in _READ_ONLY:
        return f"{path} cannot be written: its disk is read-only; make it writable, or name another folder"
    if number in _FORBIDDEN:
        return f"{path} cannot be opened: permission denied; give yourself access to it"
    if number in _MISSING:
        return f"{path} is missing: it or its folder was moved or deleted, or a disk is not mounted; bring it back"
    if number in _LOST:
        return f"{path} cannot be reached ({said}): its disk or network mount is lost or damaged; bring it back"
    if number in _MANY_FILES:
        return f"{path} cannot be opened ({said}); type: ulimit -n 65536"
    return f"{path} cannot be used ({said}); mend that"


def _path(name: object) -> str:
    if name is None:
        return "the output"
    text = os.fsdecode(name) if isinstance(name, (str, bytes)) else str(name)
    return text if text.isprintable() else shown(text)


def _is_of_allocator(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_MEMORY)


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:150] if lines else "the system refused it"


_CGROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@functools.lru_cache(maxsize=1)
def memory_limit() -> int:
    """Bytes: the machine's memory, or less where a container (cgroup v1 or v2) or `ulimit -v` allows less.

    Memory that other processes use is not subtracted, so that the answer never changes.
    """
    return min([_installed(), *_of_cgroups(), _of_ulimit()])


def gigabytes(count: float) -> str:
    """A number of bytes for people, in GB of 1e9 bytes."""
    return f"{count / 1e9:,.0f} GB" if count >= 1e11 else f"{count / 1e9:.3g} GB"


def _installed() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not on every system
        return sys.maxsize


def _of_cgroups() -> Iterator[int]:
    """Limits of the cgroups of this process and of their parents; none outside Linux."""
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, name = _CGROUPS, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = _CGROUPS / "memory", "memory.limit_in_bytes"
        else:
            continue
        inside = PurePosixPath(path.lstrip("/"))
        for group in (inside, *inside.parents):
            try:
                text = (root / group / name).read_text().strip()
            except OSError:  # in a container the path can be that of the host
                continue
            if text.isdecimal():  # else "max"
                yield int(text)


def _of_ulimit() -> int:
    try:
        import resource
    except ImportError:  # not on Windows
        return sys.maxsize
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


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
        odd: why other entries are no such files ("is a FIFO"), by their `printable` name.
    """

    files: list[str] = field(default_factory=list)
    odd: dict[str, str] = field(default_factory=dict)

    def with_dangling(self) -> Listing:
        """The same with dangling links among the files: their disk may only be away."""
        dangling = [name for name, why in self.odd.items() if why == DANGLING]
        odd = {name: why for name, why in self.odd.items() if why != DANGLING}
        return Listing(sorted(self.files + dangling), odd)


def list_folder(folder: Path) -> Listing:
    """What `folder` holds; nothing where it is no folder.

    Names that are not valid UTF-8 are odd too: JSON, tables and most readers cannot hold them.
    """
    if not folder.is_dir():
        return Listing()
    files, odd = [], {}
    for entry in os.scandir(folder):
        # The directory itself tells a regular file, without a call of stat.
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
