"""Files that are the old or the new one at every moment, whatever ends the process that writes them."""

from __future__ import annotations

import contextlib
import functools
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from nnssl.core.lock import this_machine

WRITING = ".writing"  # ends the names of files that are being written


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A name beside `file` to write to; it takes the place of `file` at the end, or is removed after an error.

    What a killed process of this machine left of the same file is removed too.

    Raises:
        OSError: naming `file`, where the system did not say which file it was.
    """
    start = f".{file.name}.{_machine()}."
    temporary = file.with_name(f"{start}{os.getpid()}{WRITING}")
    try:
        yield temporary
        os.replace(temporary, file)
        _remove_of_dead(file.parent, start)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(file)) from error
    finally:
        with contextlib.suppress(OSError):  # the folder is gone, or cannot be written to any more
            temporary.unlink(missing_ok=True)


def replace_file(file: Path, content: bytes) -> None:
    """Write `content` to a file in one piece, flushed to the disk; folders that are missing are made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as temporary, open(temporary, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left half-written in a folder that nobody else writes to now."""
    for file in folder.glob(f"*{WRITING}"):
        if not file.is_dir():
            file.unlink(missing_ok=True)


def _remove_of_dead(folder: Path, start: str) -> None:
    for entry in os.scandir(folder):
        process = entry.name[len(start) : -len(WRITING)]
        ours = entry.name.startswith(start) and entry.name.endswith(WRITING) and process.isdecimal()
        if ours and _machine() and not Path("/proc", process).exists():
            Path(entry.path).unlink(missing_ok=True)


@functools.cache
def _machine() -> str:
    """A short name of this machine, or container; empty where the system does not tell."""
    name = this_machine()
    return f"{zlib.crc32(name.encode()):08x}" if name else ""
