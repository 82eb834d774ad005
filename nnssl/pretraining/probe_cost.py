"""How often a probe works, so that it costs a small part of the run.

The unit is one forward pass of the backbone over one patch. Counting units instead of seconds makes the probe the same
on every machine and in every repetition of a run.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil, prod
from typing import Any

import torch
from torch import nn

from nnssl.methods.base import Method
from nnssl.networks.pyramid import FeaturePyramid


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


TRAINING_SHARE = 0.04  # of the run's units, for training the heads
EVALUATION_SHARE = 0.03  # for the Dice
EVALUATIONS = 20  # in a run, at most, unless the user says how often
_BACKWARD = 2  # units of the backward pass of one forward pass
_TRAINING_COST = 4.0  # units of two crops for the heads: reading, forward pass, steps of the heads
_WINDOW_COST = 1.5  # units of one window: reading, forward pass, both heads on every voxel
_ENOUGH_WINDOWS = 8  # an evaluation with fewer waits for more budget


class StepCost:
    """Counts what one training step forwards, by hooks that are gone after the first step.

    Crops through any feature pyramid of the method count, three units where a gradient follows. A network that hides
    blocks in a way of its own is not called as a module: there the images of the batch count, visible part only.
    """

    def __init__(self, method: Method) -> None:
        self.patch = prod(method.config.patch_size)
        self.voxels = 0.0
        self._of_batch = 0.0
        pyramids = [m for m in method.modules() if isinstance(m, FeaturePyramid)]
        self._handles = [m.register_forward_pre_hook(self._count) for m in pyramids]
        self._handles.append(method.register_forward_pre_hook(self._count_batch))

    def units(self) -> float:
        """Units of the steps since the hooks were set, which are removed."""
        self.close()
        return (self.voxels or self._of_batch) / self.patch

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _count(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        follows = torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())
        self.voxels += args[0].shape[0] * prod(args[0].shape[2:]) * (1 + _BACKWARD * follows)

    def _count_batch(self, module: Method, args: tuple[Any, ...]) -> None:
        visible = 1 - getattr(module.config, "mask_ratio", 0.0) if module.backbone.encodes_blocks else 1
        images = [t for t in args[0].values() if t.ndim >= 5 and t.is_floating_point()]
        voxels = sum(t.numel() for t in images) / module.backbone.input_channels
        self._of_batch += (1 + _BACKWARD) * visible * voxels


def training_interval(units: float) -> int:
    """Steps from one training of the heads to the next, in a run whose steps cost `units`."""
    return max(1, ceil(_TRAINING_COST / (TRAINING_SHARE * max(units, 1e-9))))


def evaluation_interval(units: float, steps_per_epoch: int, num_epochs: int, windows: int) -> int:
    """Epochs between evaluations: at most `EVALUATIONS` of them, and budget for several windows (of `windows`)."""
    enough = min(windows, _ENOUGH_WINDOWS)
    wait = ceil(enough * _WINDOW_COST / (EVALUATION_SHARE * max(units, 1e-9) * steps_per_epoch))
    return min(num_epochs, max(wait, ceil(num_epochs / EVALUATIONS)))


def windows_within(units: float, steps: int) -> int:
    """Windows that an evaluation after `steps` steps may use."""
    return int(EVALUATION_SHARE * units * steps / _WINDOW_COST)
