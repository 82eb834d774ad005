"""What the system refuses - a full disk, a mount that is gone, a folder that may not be written - in one sentence."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

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
# These are the system's wherever they come from; others only where a file is named.
_ALWAYS = (*_FULL, *_READ_ONLY, errno.EIO, errno.ESTALE, errno.ENOTCONN, *_MANY_FILES, errno.ENOMEM)
_NO_MEMORY = ("can't allocate memory", "std::bad_alloc")  # as torch says it

log = logging.getLogger("nnssl")


def why(error: BaseException, again: str = "run the same line again") -> str | None:
    """A sentence with the path, the reason and the fix, where the system is to blame; None for any other error.

    Args:
        error: that was caught.
        again: what the user types when all is well again, as the end of a sentence.
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
    """The error, naming a file where the system did not say which one it was."""
    if error.errno is None or error.filename is not None:
        return error
    return OSError(error.errno, os.strerror(error.errno), str(file))


def unreadable(file: Path) -> OSError | None:
    """Why a file cannot be read to its end; None where it can, so that only its content can be at fault."""
    try:
        with open(file, "rb", buffering=0) as stream:
            while stream.read(2**20):
                pass
    except OSError as error:
        return name_file(error, file)
    return None


@contextlib.contextmanager
def dispensable(what: str) -> Iterator[None]:
    """For what a run can do without, such as a picture: a warning takes its place where the system refuses it."""
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
