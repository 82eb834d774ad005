"""Times of the parts of a step."""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from statistics import median

import torch
from torch import nn

from nnssl.methods.base import Batch, Method
from nnssl.pretraining.metrics import memory_gib
from nnssl.pretraining.optimisation import build_optimiser


def step_parser(description: str | None, repeats: int = 5) -> argparse.ArgumentParser:
    """The arguments of every script that times a step: device, threads, and how many steps are measured."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-device", default="cpu")
    parser.add_argument("-threads", type=int, default=2)
    parser.add_argument("-repeats", type=int, default=repeats)
    return parser


def step_of(method: Method, augmented: Callable[[], Batch]) -> Callable[[], None]:
    """A training step of a method as the loop takes it, without a schedule.

    Args:
        method: trained in place.
        augmented: makes the batch of each step.
    """
    optimiser = build_optimiser(method.config, method.parameters())

    def step() -> None:
        loss = method(augmented()).loss
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(method.parameters(), 1.0)
        optimiser.step()
        method.after_step(0)

    return step


def user_seconds() -> float:
    """CPU seconds of this process outside of the kernel, which others on the machine disturb least."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_utime


def in_turn(steps: Mapping[str, Callable[[], object]], repeats: int, reference: str) -> dict[str, tuple[float, float]]:
    """Run steps in turn; print each as it ends, then the fastest of each and its ratio to the reference.

    Args:
        steps: What to run, by name.
        repeats: Number of rounds.
        reference: The step that the others are compared with.

    Returns:
        User and clock seconds of the fastest of each.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            user, clock = user_seconds(), time.perf_counter()
            step()
            taken = user_seconds() - user, time.perf_counter() - clock
            times[name].append(taken)
            print(f"{name:16} {taken[0]:8.2f} s of user CPU, {taken[1]:8.2f} s, load {os.getloadavg()[0]:.1f}",
                  flush=True)  # fmt: skip
    fastest = {name: (min(t[0] for t in taken), min(t[1] for t in taken)) for name, taken in times.items()}
    for name, (user, clock) in fastest.items():
        print(f"{name:16} fastest {user:8.2f} s of user CPU, {clock:8.2f} s; / {reference} "
              f"{user / fastest[reference][0]:.2f} and {clock / fastest[reference][1]:.2f}")  # fmt: skip
    return fastest


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
