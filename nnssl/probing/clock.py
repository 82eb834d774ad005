"""What a probe costs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Seconds spent in `running` blocks: of this process, or of the card where a block took longer there.

    The card is never waited for: what it is still computing is counted later.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_card = device.type == "cuda"
        self._seconds, self.total, self.began = 0.0, 0.0, time.perf_counter()
        self._unfinished: deque[tuple[float, torch.cuda.Event, torch.cuda.Event]] = deque()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what is done inside."""
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2)) if self.on_card else (None, None)
        begin = time.perf_counter()
        if first is not None:
            first.record()
        try:
            yield
        finally:
            seconds = time.perf_counter() - begin
            self._add(seconds)
            if first is not None and last is not None:
                last.record()
                self._unfinished.append((seconds, first, last))

    @property
    def seconds(self) -> float:
        """Since `reset`."""
        while self._unfinished and self._unfinished[0][2].query():
            counted, first, last = self._unfinished.popleft()
            self._add(max(0.0, first.elapsed_time(last) / 1000 - counted))
        return self._seconds

    def reset(self) -> None:
        """Begin to count `seconds` anew; `total` goes on."""
        self._seconds = 0.0

    @property
    def share(self) -> float:
        """Of the time since the clock was made."""
        return self.total / max(time.perf_counter() - self.began, 1e-9)

    def _add(self, seconds: float) -> None:
        self._seconds += seconds
        self.total += seconds
