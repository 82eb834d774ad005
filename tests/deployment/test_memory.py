from __future__ import annotations

import multiprocessing
import time

import numpy as np
import psutil
import pytest

from nnssl.deployment.efficiency import area, resident_mb, watch


def _hold(megabytes: int, seconds: float) -> None:
    held = np.ones(megabytes * 2**20, dtype=np.uint8)
    time.sleep(seconds)
    del held


def test_area__is_the_trapezoid_rule() -> None:
    assert area([(0.0, 0.0), (1.0, 10.0), (3.0, 10.0), (4.0, 0.0)]) == pytest.approx(5 + 20 + 5)
    assert area([(0.0, 7.0)]) == 0.0


def test_watch__sees_what_a_process_holds() -> None:
    process = multiprocessing.get_context("spawn").Process(target=_hold, args=(300, 0.6))
    process.start()
    samples = watch(process, lambda: resident_mb(process.pid or 0))
    times = [seconds for seconds, _ in samples]
    assert process.exitcode == 0 and times == sorted(times) and times[0] < 0.1
    steps = np.diff(times)
    assert np.median(steps) == pytest.approx(0.1, abs=0.05)
    own = psutil.Process().memory_info().rss / 2**20  # has imported at least what the other one has
    assert 300 < max(mb for _, mb in samples) < 300 + own + 100
    assert samples[-1][1] == samples[-2][1]


def test_resident_mb__counts_children_and_nobody_who_is_gone() -> None:
    own = psutil.Process().memory_info().rss / 2**20
    assert resident_mb(psutil.Process().pid) >= own * 0.9
    assert resident_mb(2**22 + 1) == 0.0
