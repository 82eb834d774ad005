"""Memory of a process over time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from nnssl.deployment.packages import need
from nnssl.errors import UserError

PERIOD_S = 0.1  # of the samples (methods.md 5.6)
_MB = 2**20

Sample = tuple[float, float]  # seconds since the process began, MB


def watch(process: Any, read_mb: Callable[[], float]) -> list[Sample]:
    """Read the memory of a started `multiprocessing.Process` every 0.1 s until it ends, and once for the end.

    The last sample has the memory of the one before: there is nothing left to read.
    """
    begin = time.perf_counter()
    samples: list[Sample] = []
    while process.is_alive():
        now = time.perf_counter() - begin
        samples.append((now, read_mb()))
        process.join(max(0.0, now + PERIOD_S - (time.perf_counter() - begin)))
    samples.append((time.perf_counter() - begin, samples[-1][1] if samples else 0.0))
    return samples


def area(samples: Sequence[Sample]) -> float:
    """Area under the curve by the trapezoid rule, in MB s."""
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(samples))


def resident_mb(process_id: int) -> float:
    """Resident memory of a process and all that it started, in MB of 2^20 bytes; pages that they share count twice.

    Raises:
        UserError: psutil is missing.
    """
    psutil = need("psutil")
    total = 0
    try:
        parent = psutil.Process(process_id)
        for process in (parent, *parent.children(recursive=True)):
            total += process.memory_info().rss
    except psutil.NoSuchProcess:  # it ended meanwhile
        pass
    return total / _MB


def used_on_card_mb() -> float:
    """Memory in use on the first visible card, by all processes, in MB of 2^20 bytes.

    Raises:
        UserError: torch sees no card.
    """
    import torch

    if not torch.cuda.is_available():
        raise UserError("torch sees no CUDA card, whose memory was to be measured; give -device cpu")
    free, total = torch.cuda.mem_get_info(0)
    return (total - free) / _MB
