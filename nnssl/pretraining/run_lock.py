"""One run at a time in a folder: `.fold_all.lock` beside it, which outlives a folder that is replaced."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nnssl.core.errors import UserError
from nnssl.core.lock import REQUEUE_S, Lock

log = logging.getLogger("nnssl")


@dataclass(frozen=True)
class Claim:
    """The right to write to a run's folder; can be handed to a process that was started for the run.

    Args:
        folder: of the run.
        lock: the file that says who writes there.
        token: what it says of the run that has this claim.
    """

    folder: Path
    lock: Path
    token: str

    def check(self) -> None:
        """Make sure of it before something is written.

        Raises:
            UserError: another run has taken the folder, since this one seemed to be dead; names it.
        """
        holder = Lock(self.lock, str(self.folder)).holder()
        if holder is not None and holder.token != self.token:
            raise UserError(f"{self.folder} was taken over by {holder}, since this run gave no sign of life for two "
                            f"minutes; this one ends here, so that their files are not mixed")  # fmt: skip


@contextlib.contextmanager
def claimed(folder: Path, patient: bool) -> Iterator[Claim]:
    """Hold a run's folder, which may not exist yet; what was made for that and is not used is removed.

    Args:
        folder: of the run.
        patient: whether to wait for a run that is about to end, as one that goes on in its place does.

    Raises:
        UserError: another run holds it; names it.
        OSError: its parent cannot be written to.
    """
    missing = [parent for parent in folder.parents if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = Lock(folder.with_name(f".{folder.name}.lock"), f"the run in {folder}")
    try:
        lock.acquire(REQUEUE_S if patient else 0.0, log.info)
        with lock:
            holder = lock.holder()
            yield Claim(folder, lock.path, holder.token if holder else "")
    finally:
        for parent in missing:  # the innermost one first
            with contextlib.suppress(OSError):
                parent.rmdir()
