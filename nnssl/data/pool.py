"""One function over many cases, in processes of their own, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from tqdm import tqdm

from nnssl.core.signals import ignore_signals, stop_if_told
from nnssl.errors import UserError

T = TypeVar("T")
R = TypeVar("R")


def default_processes() -> int:
    """nnU-Net's number of processes (`nnUNet_def_n_proc`, else 8), but not more than there are cores."""
    from nnunetv2.configuration import default_num_processes

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(int(default_num_processes), cores))


def map_cases(
    function: Callable[[T], R], items: Sequence[T], num_processes: int, title: str, show_progress: bool = True
) -> Iterator[R]:
    """Results of `function` in the order in which they are ready; one process means this one.

    The bar is drawn on a terminal only.

    Raises:
        UserError: the operating system killed a process, or there is not enough memory.
        Exception: the first one that `function` raises; what has not begun is cancelled.
    """
    num_processes = min(num_processes, len(items))
    results = _in_pool(function, items, num_processes) if num_processes > 1 else map(function, items)
    with tqdm(desc=title, total=len(items), disable=None if show_progress else True, unit="case") as bar:
        try:
            for result in results:
                bar.update()
                yield result
                stop_if_told()
        except (MemoryError, BrokenProcessPool) as error:
            stop_if_told()  # the signal may have come to a process that was just starting
            raise UserError(f"{title}: not enough memory for {_why_memory(error, num_processes)}; what is done is "
                            f"kept") from error  # fmt: skip


def _why_memory(error: MemoryError | BrokenProcessPool, num_processes: int) -> str:
    """What it was not enough for, and what to do; a MemoryError names the case."""
    if isinstance(error, BrokenProcessPool):
        reason = "the system ended one"
    elif num_processes <= 1:
        return f"one volume alone ({error}); remove it, or use a machine with more"
    else:
        reason = str(error) or "the system refused some"
    return f"{num_processes} processes ({reason}); run the same line with fewer, -np {max(1, num_processes // 2)}"


def _in_pool(function: Callable[[T], R], items: Sequence[T], num_processes: int) -> Iterator[R]:
    # A fork would copy the threads' locks of torch, blosc2 and SimpleITK in whatever state they are.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_processes, mp_context=context, initializer=_be_a_quiet_child)
    try:
        for future in as_completed([pool.submit(function, item) for item in items]):
            yield future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _be_a_quiet_child() -> None:
    """One thread a process, an end without traceback on Ctrl-C, and no life after the parent's."""
    import torch

    torch.set_num_threads(1)

    def leave(*_: Any) -> None:
        os._exit(130)

    signal.signal(signal.SIGINT, leave)
    ignore_signals()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
