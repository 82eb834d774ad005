"""How much memory this process may use at most."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_CGROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


@functools.lru_cache(maxsize=1)
def memory_limit() -> int:
    """Bytes: the machine's memory, or less where a container (cgroup v1 or v2) or `ulimit -v` allows less.

    What other processes use is not taken off: the answer stays the same from one call to the next.
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
    """Limits of the groups that this process is in, and of those around them; none outside of Linux."""
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
