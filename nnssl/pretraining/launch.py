"""One process, several on this machine (`-num_gpus`), or those that torchrun started (any number of machines)."""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import logging
import multiprocessing.connection
import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist

from nnssl.core.distributed import barrier, gather_objects, number_of_processes, started_by_torchrun, world_size
from nnssl.core.errors import UserError
from nnssl.core.signals import EXIT_INTERRUPTED, Interrupted, StopSignal
from nnssl.core.system import why
from nnssl.data.loader import number_of_workers
from nnssl.methods.options import to_plain
from nnssl.pretraining.loop import Pretraining
from nnssl.pretraining.memory import announce_memory, what_would_fit
from nnssl.pretraining.run_log import CONTINUE, open_run_log, run_log
from nnssl.pretraining.setup import Setup, case_labels

_SAID = 64  # exit code of a process that has said what is wrong
_FOLLOWING_S, _SAVING_S = 5.0, 60.0  # for processes whose peer has failed, or was interrupted and saved

log = logging.getLogger("nnssl")


@contextlib.contextmanager
def joined(device: str) -> Iterator[None]:
    """The processes that torchrun started meet, and wait for the one that waits for a folder; others need not."""
    count = number_of_processes(1)
    if count == 1:
        yield
        return
    with _group(device, int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"]), count):
        barrier()
        yield


def launch(setup: Setup, device: str, num_gpus: int) -> None:
    """Run a setup to its end; under torchrun within `joined`.

    Raises:
        Interrupted: a signal ended it; everything is saved.
        UserError: see `Pretraining.run`; the system killed a process that was started here.
        SystemExit: a process that was started here failed; it has said why.
    """
    if started_by_torchrun():
        _run(setup, device, int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"]))
    elif num_gpus == 1:
        _run(setup, device, 0, 0)
    else:
        _spawn(setup, device, num_gpus)


def _spawn(setup: Setup, device: str, count: int) -> None:
    from torch.multiprocessing.spawn import ProcessException, start_processes

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = start_processes(_child, (setup, device, count, port), count, join=False, start_method="spawn")
    processes: list[Any] = context.processes

    def forward(number: int) -> None:
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, number)

    with StopSignal(forward) as told:
        failures = _wait_for(processes)
        for process in processes:
            process.kill()  # where another one has failed
        try:
            while not context.join():
                pass
        except ProcessException:
            if _SAID in failures.values():
                raise SystemExit(1) from None
            lost = {rank: -code for rank, code in failures.items() if code < 0}
            if lost and not told.received:
                rank, number = next(iter(lost.items()))
                raise UserError(killed(f"process {rank} of the run", number)) from None
            if told.received or EXIT_INTERRUPTED in failures.values():
                raise Interrupted("all processes have stopped; continue with --c") from None
            raise


def _wait_for(processes: Sequence[Any]) -> dict[int, int]:
    """Exit codes, other than 0, by rank; where one fails the others get some time to end as well."""
    alive, failures = list(processes), dict[int, int]()
    while alive:
        patience = None if not failures else _SAVING_S if EXIT_INTERRUPTED in failures.values() else _FOLLOWING_S
        if not multiprocessing.connection.wait([process.sentinel for process in alive], patience):
            break
        alive = [process for process in alive if process.is_alive()]
        failures = {rank: process.exitcode for rank, process in enumerate(processes) if process.exitcode}
    return failures


def _child(rank: int, setup: Setup, device: str, count: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    # not of the root: what other libraries say is not in the run's log either
    log.addHandler(logging.StreamHandler(sys.stdout))
    log.setLevel(logging.INFO if rank == 0 else logging.ERROR)
    try:
        with _group(device, rank, rank, count):
            _run(setup, device, rank, rank)
    except UserError as error:
        if rank == 0:
            log.error(f"error: {error}")
        sys.exit(_SAID)
    except Interrupted:
        sys.exit(EXIT_INTERRUPTED)


@contextlib.contextmanager
def _group(device: str, rank: int, local_rank: int, count: int) -> Iterator[None]:
    """The group of the processes that train together."""
    if device == "cuda":
        torch.cuda.set_device(local_rank)
    dist.init_process_group("nccl" if device == "cuda" else "gloo", rank=rank, world_size=count)
    try:
        yield
    finally:
        gc.collect()  # DistributedDataParallel holds the group, whose threads must not outlive it: the process aborts
        dist.destroy_process_group()


def _run(setup: Setup, device: str, rank: int, local_rank: int) -> None:
    where = torch.device("cuda", local_rank) if device == "cuda" else torch.device("cpu")
    if where.type == "cuda":
        torch.cuda.set_device(where)
        torch.backends.cudnn.benchmark = True  # the sizes are the same in every step
    with said_by(rank), run_log(), in_sentences(setup):
        if rank == 0:
            open_run_log(setup.folder)
        _check_same_everywhere(setup)
        run = Pretraining(setup, where)
        if rank == 0 and where.type == "cuda":
            announce_memory(setup, run.method)
        run.run()


@contextlib.contextmanager
def said_by(rank: int) -> Iterator[None]:
    """Print the `UserError` of a process other than the first, whose command is silent: most are found by all."""
    try:
        yield
    except UserError as error:
        if rank > 0:
            print(f"error in process {rank}: {error}", file=sys.stderr)
        raise


def _check_same_everywhere(setup: Setup) -> None:
    """Refuse processes that see different volumes, plans or pairs (another disk, a listing that is not up to date)."""
    if world_size() == 1:
        return
    seen = (case_labels(setup.train), case_labels(setup.val), setup.plans, to_plain(setup.config), setup.resume is None,
            setup.aligner.identity)  # fmt: skip
    digests = gather_objects(hashlib.blake2b(repr(seen).encode()).hexdigest())
    if len(set(digests)) > 1:
        raise UserError(f"the processes do not see the same volumes, plans or checkpoints; make {setup.folder} and the "
                        f"preprocessed folder the same on all machines")  # fmt: skip


_LOST_PEER = ("gloo", "Connection closed by peer")
_NO_DESCRIPTOR = "ancillary data"  # what Python says where no more files can be opened


@contextlib.contextmanager
def in_sentences(setup: Setup) -> Iterator[None]:
    """Turn errors of the system into `UserError`s; bugs pass.

    Args:
        setup: of the run, whose step the card may not hold.
    """
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise UserError(what_would_fit(setup)) from error
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
