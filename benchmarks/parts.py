"""Times of the parts of a step."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator
from statistics import median

import torch

from nnssl.pretraining.metrics import memory_gib


def step_parser(description: str | None, repeats: int = 5) -> argparse.ArgumentParser:
    """The arguments of every script that times a step: device, threads, and how many steps are measured."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-device", default="cpu")
    parser.add_argument("-threads", type=int, default=2)
    parser.add_argument("-repeats", type=int, default=repeats)
    return parser


class Parts:
    """Wall and CPU seconds of the parts of repeated steps, in the order in which they come.

    Args:
        device: waited for at the end of every part.
        aside: parts that are no share of the step.
    """

    def __init__(self, device: torch.device, aside: tuple[str, ...] = ()) -> None:
        self.device, self.aside = device, aside
        self.seconds: dict[str, list[float]] = {}
        self.cpu_seconds: dict[str, list[float]] = {}

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Time what is done inside."""
        begin, cpu_begin = time.perf_counter(), time.process_time()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds.setdefault(part, []).append(time.perf_counter() - begin)
        self.cpu_seconds.setdefault(part, []).append(time.process_time() - cpu_begin)

    def report(self, warm: int = 1) -> str:
        """Lines with the median of every part and of the step, without the first steps, and the peak memory."""
        for times in (self.seconds, self.cpu_seconds):
            own = [values for part, values in times.items() if part not in self.aside]
            times["step"] = [sum(parts) for parts in zip(*own, strict=True)]
        whole = median(self.seconds["step"][warm:])
        lines = [
            f"{part:13} {median(values[warm:]):8.3f} s  {100 * median(values[warm:]) / whole:5.1f} %  "
            f"fastest {min(values[warm:]):8.3f} s, {min(self.cpu_seconds[part][warm:]):8.3f} CPU s"
            for part, values in self.seconds.items()
        ]
        return "\n".join([*lines, f"peak memory {memory_gib(self.device):.2f} GiB"])
