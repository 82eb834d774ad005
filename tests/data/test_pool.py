from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator

import pytest

from nnssl.core.errors import UserError
from nnssl.core.signals import Stopped, listening
from nnssl.data.pool import default_processes, map_cases


def _double(x: int) -> int:
    return 2 * x


def _die(x: int) -> int:
    if x == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def _last_one_sleeps(x: int) -> int:
    if x == 2:
        time.sleep(3)
    return x


def _no_memory(x: int) -> int:
    raise MemoryError


def _full_disk(x: int) -> int:
    raise OSError(errno.ENOSPC, "full")


@pytest.mark.really_spawned
def test_map_cases__here_and_in_processes() -> None:
    assert list(map_cases(_double, [1, 2, 3], 1, "t")) == [2, 4, 6]
    assert list(map_cases(_double, [], 4, "t")) == []
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(6):
            taken.append(item)
            yield item

    results = []
    for result in map_cases(_double, items(), 2, "t", total=6):
        results.append(result)
        assert len(taken) <= len(results) + 2  # no more than are at work
    assert sorted(results) == [0, 2, 4, 6, 8, 10]


def test_map_cases__killed_process_is_an_error_not_a_hang() -> None:
    with pytest.raises(UserError, match=r"not enough memory for 2 processes .* at .*\b1\b.* -np 1"):
        list(map_cases(_die, [0, 1, 2, 3], 2, "t"))


def test_map_cases__a_signal_to_all_keeps_what_is_done_and_leaves_no_process() -> None:
    done = []
    with pytest.raises(Stopped, match="type this"), listening("type this"):
        for result in map_cases(_last_one_sleeps, [0, 1, 2], 2, "t"):
            done.append(result)
            for child in multiprocessing.active_children():  # as a signal to the process group
                os.kill(child.pid or 0, signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
    assert done in ([0], [1])
    end = time.monotonic() + 60
    while multiprocessing.active_children() and time.monotonic() < end:  # a join would race with the pool's own
        time.sleep(0.05)
    assert not multiprocessing.active_children()


def test_map_cases__errors_come_through() -> None:
    with pytest.raises(UserError, match="not enough memory"):
        list(map_cases(_no_memory, [0], 1, "t"))
    with pytest.raises(OSError, match="full") as caught:
        list(map_cases(_full_disk, [0, 1], 2, "t"))
    assert caught.value.errno == errno.ENOSPC


def _no_memory_for_a_case(x: int) -> int:
    raise MemoryError(f"case_{x}: Unable to allocate 12. GiB")


def test_map_cases__a_case_that_does_not_fit_is_named() -> None:
    with pytest.raises(UserError, match=r"one volume alone \(case_7: .*12. GiB\); remove it") as caught:
        list(map_cases(_no_memory_for_a_case, [7], 1, "t"))
    assert "-np" not in str(caught.value)
    with pytest.raises(UserError, match=r"2 processes \(case_[78]: .*\); run the same line with fewer, -np 1"):
        list(map_cases(_no_memory_for_a_case, [7, 8], 2, "t"))


def test_default_processes__not_more_than_cores() -> None:
    assert 1 <= default_processes() <= (os.cpu_count() or 1)
