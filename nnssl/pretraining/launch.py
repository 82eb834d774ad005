"""One process, several on this machine (`-num_gpus`), or those that torchrun started (any number of machines)."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

from nnssl.distributed import gather_objects
from nnssl.errors import UserError
from nnssl.methods.options import to_plain
from nnssl.pretraining.loop import Pretraining
from nnssl.pretraining.setup import Setup, case_labels
from nnssl.pretraining.signals import EXIT_INTERRUPTED, Interrupted

log = logging.getLogger("nnssl")


def started_by_torchrun() -> bool:
    """Whether torchrun (or another launcher that speaks its variables) made this process."""
    return all(name in os.environ for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def number_of_processes(num_gpus: int) -> int:
    """Processes that will train together."""
    return int(os.environ["WORLD_SIZE"]) if started_by_torchrun() else num_gpus


def check_device(device: str, num_gpus: int) -> None:
    """Refuse a device that is not there.

    Raises:
        UserError: no CUDA, fewer cards than asked for, or a device that is neither cuda nor cpu.
    """
    if num_gpus < 1:
        raise UserError("-num_gpus takes a number from 1 on")
    if device == "cpu":
        return
    if device != "cuda":
        raise UserError(f"there is no device {device!r}; use -device cuda or -device cpu")
    if not torch.cuda.is_available():
        raise UserError("PyTorch sees no CUDA card; use -device cpu, or install a PyTorch build for your driver")
    if not started_by_torchrun() and num_gpus > torch.cuda.device_count():
        raise UserError(f"-num_gpus {num_gpus} is more than the {torch.cuda.device_count()} cards that PyTorch sees")


def launch(setup: Setup, device: str, num_gpus: int) -> None:
    """Run a setup to its end.

    Raises:
        Interrupted: a signal ended it; everything is saved.
        UserError: see `Pretraining.run`.
        SystemExit: a process started here failed; it has said why.
    """
    if started_by_torchrun():
        _run(setup, device, int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"]))
    elif num_gpus == 1:
        _run(setup, device, 0, 0, 1)
    else:
        _spawn(setup, device, num_gpus)


def _spawn(setup: Setup, device: str, count: int) -> None:
    from torch.multiprocessing import ProcessExitedException, start_processes

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = start_processes(_child, (setup, device, count, port), count, join=False, start_method="spawn")

    def forward(number: int, frame: FrameType | None) -> None:
        for process in processes.processes:
            if process.is_alive():
                os.kill(process.pid, number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        while not processes.join():
            pass
    except ProcessExitedException as error:
        if error.exit_code == EXIT_INTERRUPTED:
            raise Interrupted("all processes have stopped; continue with --c") from None
        raise SystemExit(1) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _child(rank: int, setup: Setup, device: str, count: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    logging.basicConfig(format="%(message)s", level=logging.INFO if rank == 0 else logging.ERROR, stream=sys.stdout)
    try:
        _run(setup, device, rank, rank, count)
    except UserError as error:
        if rank == 0:
            log.error(f"error: {error}")
        sys.exit(1)
    except Interrupted:
        sys.exit(EXIT_INTERRUPTED)


def _run(setup: Setup, device: str, rank: int, local_rank: int, count: int) -> None:
    where = torch.device("cuda", local_rank) if device == "cuda" else torch.device("cpu")
    if where.type == "cuda":
        torch.cuda.set_device(where)
        torch.backends.cudnn.benchmark = True  # the sizes are the same in every step
    if count == 1:
        with _log_file(setup.folder):
            Pretraining(setup, where).run()
        return
    dist.init_process_group("nccl" if device == "cuda" else "gloo", rank=rank, world_size=count)
    try:
        with _log_file(setup.folder if rank == 0 else None):
            _check_same_everywhere(setup)
            Pretraining(setup, where).run()
    except UserError as error:
        if rank > 0:  # this process's command is silent, since most mistakes are found by all
            print(f"error in process {rank}: {error}", file=sys.stderr)
        raise
    finally:
        gc.collect()  # DistributedDataParallel holds the group, whose threads must not outlive it: the process aborts
        dist.destroy_process_group()


def _check_same_everywhere(setup: Setup) -> None:
    """Refuse processes that see different volumes, plans or pairs (another disk, a listing that is not up to date)."""
    seen = (case_labels(setup.train), case_labels(setup.val), setup.plans, to_plain(setup.config), setup.resume is None,
            setup.aligner.identity)  # fmt: skip
    digests = gather_objects(hashlib.blake2b(repr(seen).encode()).hexdigest())
    if len(set(digests)) > 1:
        raise UserError(f"the processes do not see the same volumes, plans or checkpoints; make {setup.folder} and the "
                        f"preprocessed folder the same on all machines")  # fmt: skip


@contextlib.contextmanager
def _log_file(folder: Path | None) -> Iterator[None]:
    """The log goes to a file of the run too."""
    if folder is None:
        yield
        return
    handler = logging.FileHandler(folder / "pretraining_log.txt")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    try:
        yield
    except (UserError, Interrupted) as end:
        # the command says it on the terminal; whoever opens the log later wants to know it too
        handler.handle(logging.LogRecord(log.name, logging.ERROR, __file__, 0, str(end), None, None))
        raise
    finally:
        log.removeHandler(handler)
        handler.close()
