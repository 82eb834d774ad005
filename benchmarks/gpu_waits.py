"""Count the operations of a step for which the host waits for the card, by the line of the package that asks."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import nnssl
from nnssl.data.loader import LoadedBatch
from nnssl.pretraining.loop import Pretraining

_PACKAGE = str(Path(nnssl.__file__).parent)
_SAID = "synchronizing CUDA operation"


@contextlib.contextmanager
def counted_waits(device: torch.device) -> Iterator[Counter[str]]:
    """Count the waits inside by "file:line"; on a CPU nobody waits, and the count stays empty.

    Torch warns of each ("warn" of its synchronisation debug mode), and of the backward pass at its end.
    """
    found: Counter[str] = Counter()

    def note(message: Warning | str, *args: Any, **more: Any) -> None:
        if _SAID in str(message):
            found[_line_of_package(sys._getframe(1))] += 1

    cuda = device.type == "cuda"
    before = torch.cuda.get_sync_debug_mode() if cuda else 0
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        try:
            if cuda:
                torch.cuda.set_sync_debug_mode("warn")
            yield found
        finally:
            if cuda:
                torch.cuda.set_sync_debug_mode(before)


class CountedRun(Pretraining):
    """A run that counts the waits of one of its steps, by line: augmentation to log, without the probe."""

    counted_step = 2
    waits: Counter[str]  # after that step

    def _train_step(self, batch: LoadedBatch) -> None:
        if self.step != self.counted_step:
            super()._train_step(batch)
            return
        with counted_waits(self.device) as self.waits:
            super()._train_step(batch)


def _line_of_package(frame: FrameType | None) -> str:
    """The innermost line of the package; "elsewhere" without one."""
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_PACKAGE):
            return f"{Path(file).relative_to(_PACKAGE)}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"
