"""One function over many cases, in processes of their own, with a progress bar."""

from __future__ import annotations

import contextlib
import io
import logging
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import Any, TypeVar

from tqdm import tqdm

from nnssl.core.errors import UserError
from nnssl.core.signals import ignore_signals, stop_if_told

logger = logging.getLogger("nnssl")


@contextlib.contextmanager
def quietly(if_it_fails: int = logging.DEBUG) -> Iterator[io.StringIO]:
    """Collect standard output, standard error and warnings of Python code, and yield the text collected so far.

    What was said goes to the log at level DEBUG, or at `if_it_fails` when the block raises anything but a UserError.
    """
    said = io.StringIO()
    level = logging.DEBUG
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("default")
            # the default hook would write to the stream that was standard error when it was set up
            warnings.showwarning = lambda message, *_args, **_kwargs: print(message, file=said)
            yield said
    except UserError:  # says itself what is wrong
        raise
    except BaseException:
        level = if_it_fails
        raise
    finally:
        if text := said.getvalue().strip():
            logger.log(level, "%s", text)


@contextlib.contextmanager
def itk_is_quiet() -> Iterator[None]:
    """Without the warnings that ITK writes to the process's standard error, past Python's."""
    import SimpleITK as sitk

    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


T = TypeVar("T")
R = TypeVar("R")


def default_processes(asked: int | None = None) -> int:
    """The number that `-np` asks for; for None nnU-Net's (`nnUNet_def_n_proc`, else 8), at most one a core.

    Raises:
        UserError: `asked` is below 1.
    """
    if asked is not None:
        if asked < 1:
            raise UserError(f"-np {asked} leaves nobody to work; use -np 1 or more")
        return asked
    from nnunetv2.configuration import default_num_processes

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(int(default_num_processes), cores))


def map_cases(
    function: Callable[[T], R],
    items: Iterable[T],
    num_processes: int,
    title: str,
    show_progress: bool = True,
    total: int | None = None,
) -> Iterator[R]:
    """Results of `function` in the order in which they get ready; one process means this one.

    Items are taken only as processes get free. The bar is drawn on a terminal only.

    Args:
        function: of one item.
        items: cases, or anything that a message can name.
        num_processes: at most.
        title: what is done, for the bar and for messages.
        show_progress: whether to draw the bar.
        total: how many items there are at most; None counts them.

    Raises:
        UserError: the operating system killed a process, or there is not enough memory; names the items at work.
        Exception: the first one that `function` raises; items that are not begun are cancelled.
    """
    if total is None:
        items = list(items)
        total = len(items)
    num_processes = min(num_processes, total)
    at_work: dict[Any, T] = {}
    run = _in_pool if num_processes > 1 else _here
    results = run(function, iter(items), num_processes, at_work)
    with tqdm(desc=title, total=total, disable=None if show_progress else True, unit="case") as bar:
        try:
            for result in results:
                bar.update()
                yield result
                stop_if_told()
        except (MemoryError, BrokenProcessPool) as error:
            stop_if_told()  # the signal may have come to a process that was just starting
            reason = _why_memory(error, num_processes, list(at_work.values()))
            raise UserError(f"{title}: not enough memory for {reason}; what is done is kept") from error


def _why_memory(error: MemoryError | BrokenProcessPool, num_processes: int, at_work: list[Any]) -> str:
    """What the memory was not enough for, and what to do; a MemoryError names the case."""
    if isinstance(error, BrokenProcessPool):
        reason = f"the system ended one at {_named(at_work)}"
    elif num_processes <= 1:
        return f"one volume alone ({error}); remove it, or use a machine with more"
    else:
        reason = str(error) or "the system refused some"
    return f"{num_processes} processes ({reason}); run the same line with fewer, -np {max(1, num_processes // 2)}"


def _here(function: Callable[[T], R], items: Iterator[T], _: int, at_work: dict[Any, T]) -> Iterator[R]:
    for item in items:
        at_work[0] = item
        yield function(item)


def _in_pool(
    function: Callable[[T], R], items: Iterator[T], num_processes: int, at_work: dict[Any, T]
) -> Iterator[R]:  # fmt: skip
    # A fork would copy the locks of the threads of torch, blosc2 and SimpleITK in their present state.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_processes, mp_context=context, initializer=_be_a_quiet_child)

    def hand_out(count: int) -> None:
        for item in islice(items, count):
            at_work[pool.submit(function, item)] = item

    try:
        hand_out(num_processes)
        while at_work:
            ready: set[Future[R]] = wait(at_work, return_when=FIRST_COMPLETED).done
            for future in ready:
                result = future.result()
                del at_work[future]
                hand_out(1)
                yield result
    finally:
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        # a killed one may have held the lock of the queue, for which the others, which ignore SIGTERM, would wait
        for process in processes if any(process.exitcode for process in processes) else ():
            process.kill()


def _named(items: Sequence[Any]) -> str:
    return ", ".join(str(getattr(item, "name", item)) for item in items) or "no case"


def _be_a_quiet_child() -> None:
    """Use one thread, end without a traceback on Ctrl-C, and end with the parent."""
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
