"""A lock for jobs on any machines that share a folder, network file systems included.

A lock is a file that names its holder. It is made in one step (a hard link), touched every 20 s while it is held, and
counts as left behind after 120 s without a touch by the clock of the file server, since the clocks of machines may
differ. The lock of a dead process of this machine is taken over at once. flock is missing on many cluster file systems,
and packages for locks compare the machines' own clocks.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

from nnssl.core.errors import UserError

HEARTBEAT_S, STALE_S = 20.0, 120.0
# A requeued job waits for its predecessor until the lock of that one counts as left behind, and a little longer.
REQUEUE_S = 150.0
_POLL_S = 1.0
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EACCES)


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Args:
        host: name of the machine.
        process: its number there.
        started: when the lock was taken, in local time.
        token: random, tells one taking from another.
        machine: identifies the machine, or the container on it; processes can be looked up only there.
        born: start of the process, by the system; a later process of the same number has another.
    """

    host: str
    process: int
    started: str
    token: str
    machine: str = ""
    born: str = ""

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, since {self.started}"


class Lock:
    """A lock file; `with lock:` or `acquire` and `release`.

    Args:
        path: of the file, in a folder that exists.
        what: what is locked, for messages, such as "the run in .../fold_all".
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path, self.what = path, what
        self._mine: Holder | None = None

    @property
    def held(self) -> bool:
        """Whether this process holds it; False after another one took it over because this one slept for too long."""
        mine, found = self._mine, _read(self.path)
        return mine is not None and mine.process == os.getpid() and found is not None and found.token == mine.token

    def holder(self) -> Holder | None:
        """The present holder; None where there is none, or the lock was left behind."""
        found = _read(self.path)
        return None if found is None or self._left_behind(found) else found

    def try_acquire(self) -> bool:
        """Take the lock if it is free; tell whether this process holds it now.

        Raises:
            OSError: the folder is missing or cannot be written to.
        """
        if self._mine is not None:
            return self.held
        mine = _me()
        for _ in range(2):  # the second time after one that was left behind
            if _create(self.path, mine):
                self._mine = mine
                _HEART.add(self)
                return True
            found = _read(self.path)
            if found is None or not self._left_behind(found):
                return False
            _take_away(self.path, found)
        return False

    def acquire(self, patience_s: float = 0.0, say: Callable[[str], object] | None = None) -> None:
        """Take the lock; wait for its holder.

        Args:
            patience_s: seconds; infinity waits until it is free.
            say: gets a sentence about each holder that is waited for.

        Raises:
            UserError: another process still holds it after that time; names it.
            OSError: the folder is missing or cannot be written to.
        """
        until, told = time.monotonic() + patience_s, ""
        while not self.try_acquire():
            holder = _read(self.path)
            if holder is not None and time.monotonic() >= until:
                raise UserError(f"{self.what} is in use by {holder}; wait for it to end, or stop it, and run this "
                                f"again")  # fmt: skip
            if say is not None and holder is not None and holder.token != told:
                told = holder.token
                say(f"waiting for {self.what}, in use by {holder}")
            time.sleep(_POLL_S)

    def release(self) -> None:
        """Give it back, if this process holds it."""
        held, self._mine = self.held, None
        _HEART.remove(self)
        if held:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # the folder is gone, or its disk: the lock will count as left behind
            self.release()

    def beat(self) -> None:
        """Touch the file, by the server's clock; called by the heartbeat."""
        if self.held:
            os.utime(self.path)

    def _left_behind(self, holder: Holder) -> bool:
        if holder.machine and holder.machine == this_machine():
            return _born(holder.process) != holder.born
        try:
            return _now(self.path.parent) - self.path.stat().st_mtime > STALE_S
        except OSError:  # just released
            return False


class _Heart:
    """One thread that touches all locks that this process holds."""

    def __init__(self) -> None:
        self._locks: list[Lock] = []
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None

    def add(self, lock: Lock) -> None:
        with self._guard:
            self._locks.append(lock)
            if self._thread is None or not self._thread.is_alive():  # not alive in a forked process
                self._thread = threading.Thread(target=self._beat, daemon=True, name="locks")
                self._thread.start()

    def remove(self, lock: Lock) -> None:
        with self._guard:
            if lock in self._locks:
                self._locks.remove(lock)

    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT_S)
            with self._guard:
                locks = list(self._locks)
            for lock in locks:
                with contextlib.suppress(OSError):  # a mount that is away for a moment
                    lock.beat()


_HEART = _Heart()


@contextlib.contextmanager
def waiting_lock(path: Path, what: str, say: Callable[[str], object]) -> Iterator[Lock]:
    """Hold a lock, after waiting for its holder as long as it takes; `say` is told about the wait."""
    lock = Lock(path, what)
    lock.acquire(float("inf"), say)
    with lock:
        yield lock


def _me() -> Holder:
    pid = os.getpid()
    now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    return Holder(socket.gethostname(), pid, now, secrets.token_hex(8), this_machine(), _born(pid))


def this_machine() -> str:
    """Boot of the kernel and namespace of process numbers; empty where the system does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(process: int) -> str:
    """Start of a process in ticks since the boot; empty for one that is dead."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    rest = text.rpartition(")")[2].split()  # the name in brackets may hold anything
    return "" if rest[0] in ("Z", "X") else rest[19]


def _create(path: Path, holder: Holder) -> bool:
    """Make the file with its content in one step; False where it exists."""
    content = json.dumps(asdict(holder)).encode()
    temporary = path.with_name(f".{path.name}.{holder.token}")
    try:
        temporary.write_bytes(content)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            return _create_without_links(path, content)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def _create_without_links(path: Path, content: bytes) -> bool:
    """For file systems without hard links: a reader may find the file without its content for a moment."""
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    return True


def _read(path: Path) -> Holder | None:
    """The holder that the file names, an unknown one for a file without content; None without a file."""
    try:
        content = json.loads(path.read_text())
        known = {field.name for field in fields(Holder)}
        return Holder(**{name: value for name, value in content.items() if name in known})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError):
        return Holder("an unknown machine", 0, "an unknown time", "")


def _take_away(path: Path, holder: Holder) -> None:
    """Remove a lock that was left behind, unless another process has taken it over first."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    found = _read(aside)
    if found is not None and found.token != holder.token:  # taken over just before the rename: give it back
        with contextlib.suppress(OSError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)


def _now(folder: Path) -> float:
    """Time of the file server, read from a new file."""
    probe = folder / f".now.{secrets.token_hex(8)}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)
