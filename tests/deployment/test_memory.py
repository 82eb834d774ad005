from __future__ import annotations

import multiprocessing
from multiprocessing.synchronize import Event

import numpy as np
import psutil
import pytest

from nnssl.deployment import efficiency
from nnssl.deployment.efficiency import area, resident_mb, watch


def _hold(megabytes: int, holds: Event, seen: Event) -> None:
    held = np.ones(megabytes * 2**20, dtype=np.uint8)
    holds.set()
    assert seen.wait(300)
    del held


class _Pretended:
    """A process that lives for some seconds of a clock of its own."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds = 0.0, seconds

    def perf_counter(self) -> float:
        return self.now

    def is_alive(self) -> bool:
        return self.now < self.seconds

    def join(self, timeout: float) -> None:
        self.now += timeout


def test_area__is_the_trapezoid_rule() -> None:
    assert area([(0.0, 0.0), (1.0, 10.0), (3.0, 10.0), (4.0, 0.0)]) == pytest.approx(5 + 20 + 5)
    assert area([(0.0, 7.0)]) == 0.0


def test_watch__reads_ten_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    process = _Pretended(0.35)
    monkeypatch.setattr(efficiency, "time", process)
    memory = iter((5.0, 8.0, 7.0, 6.0))
    times, read = zip(*watch(process, lambda: next(memory)), strict=True)
    assert times == pytest.approx((0.0, 0.1, 0.2, 0.3, 0.4)) and read == (5.0, 8.0, 7.0, 6.0, 6.0)


@pytest.mark.really_spawned
def test_watch__sees_what_a_process_holds() -> None:
    context = multiprocessing.get_context("spawn")
    holds, seen = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(300, holds, seen))

    def read() -> float:
        held = holds.is_set()
        found = resident_mb(process.pid or 0)
        if held:
            seen.set()
        return found

    process.start()
    samples = watch(process, read)
    assert process.exitcode == 0
    own = psutil.Process().memory_info().rss / 2**20  # has imported at least what the other one has
    assert 300 < max(mb for _, mb in samples) < 300 + own + 100
    assert samples[-1][1] == samples[-2][1]


def test_resident_mb__counts_children_and_nobody_who_is_gone() -> None:
    own = psutil.Process().memory_info().rss / 2**20
    assert resident_mb(psutil.Process().pid) >= own * 0.9
    assert resident_mb(2**22 + 1) == 0.0
