"""SIGTERM and SIGUSR1 end the step instead of the process: clusters send them before they kill."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: run again, with --c


class Interrupted(Exception):
    """A signal ended the run after a step; everything is saved and `--c` goes on."""


class StopSignal:
    """Context in which the signals only set `received`; the handlers of before come back at its end."""

    def __init__(self) -> None:
        self.received = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        numbers = () if os.name == "nt" else (signal.SIGTERM, signal.SIGUSR1)
        self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True
