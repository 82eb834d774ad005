"""What ends a run from outside (memory, disks, processes that the system kills), as sentences that say what to type."""

from __future__ import annotations

import contextlib
import errno
import signal
from collections.abc import Iterator

import torch
import torch.distributed as dist

from nnssl.core.errors import UserError
from nnssl.core.system import why
from nnssl.data.loader import number_of_workers
from nnssl.methods.base import MethodConfig

CONTINUE = "continue with --c"
_LOST_PEER = ("gloo", "Connection closed by peer")
_NO_DESCRIPTOR = "ancillary data"  # what Python says where no more files can be opened


@contextlib.contextmanager
def in_sentences(config: MethodConfig) -> Iterator[None]:
    """Turn errors of the system into `UserError`s; bugs pass.

    Args:
        config: of the run, whose batch and patch the card may not hold.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(
            f"the card's memory does not suffice for a batch of {config.batch_size} with patches of "
            f"{config.patch_size}; set a smaller -o batch_size=... or -o patch_size=..."
        ) from error
    except (OSError, MemoryError, RuntimeError) as error:
        sentence = _of_other_process(error) or why(error, CONTINUE)
        if sentence is None:
            raise
        raise UserError(sentence) from error


def killed(what: str, number: int) -> str:
    """A sentence on a process that was ended by a signal of this number."""
    fewer = f"use fewer loader processes (export nnUNet_n_proc_DA={max(1, number_of_workers() // 2)})"
    if number == signal.SIGKILL:
        cause = f"was killed, mostly since the memory did not suffice: end other programs, or {fewer}"
    elif number == signal.SIGBUS:
        cause = f"lost what it read: bring the disk of the volumes back; where /dev/shm was full, {fewer}"
    else:
        cause = f"was ended by signal {number}: see what it said"
    return f"{what} {cause}, and {CONTINUE}"


def _of_other_process(error: BaseException) -> str | None:
    text = str(error)
    if text.startswith("DataLoader worker"):
        return killed("a loader process", signal.SIGBUS if "Bus error" in text else signal.SIGKILL)
    if _NO_DESCRIPTOR in text:
        return why(OSError(errno.EMFILE, "", "the batch of a loader process"), CONTINUE)
    if isinstance(error, dist.DistError) or any(said in text for said in _LOST_PEER):
        return f"another process of this run has ended, or its machine is lost; see what it said, and {CONTINUE}"
    return None
