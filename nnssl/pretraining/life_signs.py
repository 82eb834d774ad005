"""What a run says between its first step and an epoch's line: how long the steps take, how far it is, what is left."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import fmean, median
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from nnssl.core.distributed import is_main, world_size
from nnssl.data.loader import number_of_workers
from nnssl.methods.base import Method, MethodConfig
from nnssl.pretraining.cost import EpochCost, Use
from nnssl.pretraining.metrics import Row, Watch, memory_gib
from nnssl.pretraining.setup import Setup

SILENCE_S = 60.0  # after which a line says how far the run is, where no bar does
_WARM_UP = 2  # steps: libraries choose their algorithms, memory is claimed
# Steps that tell how long the others will take, and for how long at least; fewer if they take long.
_FEW, _FEW_S, _FEWEST, _LONG_S = 5, 2.0, 2, 30.0
_RECENT_STEPS, _RECENT_EPOCHS = 200, 10

log = logging.getLogger("nnssl")


class Pace:
    """How long a step takes, and what follows the last step of an epoch (validation, files, probe).

    Args:
        config: of the run.
        val_steps: of an epoch.
        rows: of the run's earlier epochs on such a device; they give the pace until this process has measured its own.
    """

    def __init__(self, config: MethodConfig, val_steps: int, rows: Sequence[Row] = ()) -> None:
        self.config, self.val_steps = config, val_steps
        self.steps: deque[float] = deque(maxlen=_RECENT_STEPS)  # seconds
        self.ends: deque[float] = deque(maxlen=_RECENT_EPOCHS)
        timed = [row for row in rows if "wall_seconds" in row][-_RECENT_EPOCHS:]
        self.epochs = len(timed)
        # the median: the first epoch of a process includes its warm-up
        self._step_before = median(row["seconds"] for row in timed) / config.steps_per_epoch if timed else None
        self._end_before = median(row["wall_seconds"] - row["seconds"] for row in timed) if timed else None

    @property
    def is_measured(self) -> bool:
        """Whether this process has made enough steps to tell."""
        made, seconds = len(self.steps), sum(self.steps)
        return (made >= _FEW and seconds >= _FEW_S) or (made >= _FEWEST and seconds >= _LONG_S)

    @property
    def step(self) -> float | None:
        """Seconds a step; None where that is not known yet."""
        return fmean(self.steps) if self.is_measured else self._step_before

    def left(self, step: int) -> float | None:
        """Seconds that the run goes on after `step` finished steps; None where that is not known yet."""
        if (seconds := self.step) is None:
            return None
        end = fmean(self.ends) if self.ends else self._end_before
        if end is None:  # at most: a validation step has no backward pass
            end = self.val_steps * seconds
        epochs = self.config.num_epochs - step // self.config.steps_per_epoch
        return self.steps_left(step) * seconds + epochs * end

    def steps_left(self, step: int) -> int:
        """Of the whole run."""
        return self.config.num_epochs * self.config.steps_per_epoch - step

    def before(self, step: int) -> str:
        """What is known of the time before the first step."""
        if (left := self.left(step)) is None:
            return "said after the first steps"
        epochs = f"last {self.epochs} epochs" if self.epochs > 1 else "last epoch"
        return f"about {about(left)} for the {self.steps_left(step):,} steps left, by the {epochs}"


class LifeSigns:
    """Speaks for the main process and draws the bar of an epoch; in other processes, only counts the time.

    Nothing here waits for the device but the end of the first step.

    Args:
        config: of the run.
        pace: of the run.
        cost: of the epoch under way.
        watch: of the epoch under way.
        device: of this process.
        clock: in seconds.
    """

    def __init__(
        self, config: MethodConfig, pace: Pace, cost: EpochCost, watch: Watch, device: torch.device,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.config, self.pace, self.cost, self.watch, self.device = config, pace, cost, watch, device
        self.clock = clock
        self._made = 0  # steps of this process
        self._told_time = False
        self._bar: tqdm[Any] = tqdm(disable=True)
        self._speaks = False
        self._epoch = ""
        self._mark = self._spoken = clock()  # end of the step before; of the last line
        self._before: dict[Use, float] = {}

    @contextlib.contextmanager
    def epoch(self, epoch: int, step: int) -> Iterator[None]:
        """Make the steps of an epoch inside, after `epoch` finished epochs and `step` finished steps."""
        now = self.clock()
        if self._made:
            self.pace.ends.append(now - self._mark)
        self._before = dict(self.cost.seconds)
        self._mark = self._spoken = now
        self._epoch = f"epoch {epoch + 1}/{self.config.num_epochs}"
        total = (epoch + 1) * self.config.steps_per_epoch - step
        # disable=None: only on a terminal
        with tqdm(total=total, desc=self._epoch, leave=False, disable=None if is_main() else True) as self._bar:
            self._speaks = is_main() and (self._bar.disable or not sys.stdout.isatty())
            yield

    def step(self, step: int) -> None:
        """Count the time of a finished training step, the run's `step`-th, and say what is due."""
        if self._made == 0 and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # else the first step's time is that of its launch
        self.cost.lap("training")
        self._made += 1
        now = self.clock()
        if self._made > _WARM_UP:
            self.pace.steps.append(now - self._mark)
        self._mark = now
        self._bar.set_postfix_str(f"{self.cost.samples_per_second:.2f} samples/s, "
                                  f"data-wait {100 * self.cost.data_wait:.1f} %", refresh=False)  # fmt: skip
        self._bar.update()
        if self._made == 1:
            self._say(self._first_step())
        elif not self._told_time and self.pace.is_measured and (left := self.pace.steps_left(step)):
            self._told_time = True
            seconds = self.pace.step or 0.0
            self._say(f"{seconds:{'.0f' if seconds >= 10 else '.2g'}} s a step: about "
                      f"{about(self.pace.left(step) or 0.0)} for the {left:,} steps left")  # fmt: skip
        elif self._is_due():
            self._say(self._so_far(step))

    def validated(self, step: int) -> None:
        """Say where the validation is after `step` steps, if that is due."""
        if self._is_due():
            self._say(f"{self._epoch}  validation {step}/{self.pace.val_steps}")

    def _is_due(self) -> bool:
        return self._speaks and self.clock() - self._spoken >= SILENCE_S

    def _say(self, text: str) -> None:
        if is_main():
            self._bar.clear()
            log.info(text)
            self._bar.refresh()
        self._spoken = self.clock()

    def _first_step(self) -> str:
        waiting, training = (self.cost.seconds[use] - self._before[use] for use in ("waiting", "training"))
        return (f"first step, which includes the warm-up: {waiting + training:.1f} s, {waiting:.1f} s of it waiting "
                f"for data")  # fmt: skip

    def _so_far(self, step: int) -> str:
        per_epoch = self.config.steps_per_epoch
        means, left = self.watch.means["train"].means(), self.pace.left(step)
        parts = [
            self._epoch,
            f"step {(step - 1) % per_epoch + 1}/{per_epoch}",
            *([f"loss {means['loss']:.4f}"] if means else []),
            f"{self.cost.samples_per_second:.2f} samples/s",
            f"data-wait {100 * self.cost.data_wait:.1f} %",
            *([f"{about(left)} left"] if left is not None else []),
        ]
        return "  ".join(parts)


def about(seconds: float) -> str:
    """A time to come, in two units at most: `2 h 10 min`."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    for size, large, small, count in ((1440, "d", "h", 60), (60, "h", "min", 1)):
        if minutes >= size:
            large_units, rest = divmod(minutes, size)
            return f"{large_units} {large} {rest // count} {small}"
    return f"{minutes} min"


def announce(setup: Setup, method: Method, device: torch.device, precision: torch.dtype, step: int, time: str) -> None:
    """Say it in aligned lines.

    Args:
        setup: of the run.
        method: built, on the device.
        device: of this process.
        precision: of the forward passes.
        step: finished steps.
        time: what is known of how long the run will take.
    """
    config = setup.config
    count, length = config.num_epochs, config.steps_per_epoch
    steps = f"{count:,} epoch{'s' * (count != 1)} of {length:,} step{'s' * (length != 1)}"
    rows = [
        ("method", f"{setup.method}, {steps}" + (f", goes on after step {step:,}" if step else "")),
        ("network", _network(method)),
        ("parameters", f"{_count([method]):,} in all, {_count([method.backbone]):,} of them in the backbone"),
        ("input", _input(setup)),
        ("device", _device(device, precision)),
        ("volumes", _volumes(setup)),
        *_probe(setup),
        ("memory", _memory(device)),
        ("time", time),
        ("output", str(setup.folder)),
    ]
    width = max(len(name) for name, _ in rows)
    for name, text in rows:
        log.info(f"{name:<{width}}  {text}")


def _network(method: Method) -> str:
    backbone = method.backbone
    kind = type(getattr(backbone, "network", backbone)).__name__
    number = len(backbone.channels)
    channels = ", ".join(map(str, backbone.channels))
    left_out = f", the finest {backbone.finest} left out" if backbone.finest else ""
    return f"{kind}, {method.levels} maps at {number} level{'s' * (number > 1)} of {channels} channels{left_out}"


def _count(modules: Iterable[nn.Module]) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def _input(setup: Setup) -> str:
    sizes = (setup.config.patch, setup.train.folders[0].spacing)
    patch, mm = (" x ".join(f"{number:g}" for number in numbers) for numbers in sizes)
    share = f", {setup.config.volumes // world_size()} in each of {world_size()} processes"
    return f"patch {patch} voxels of {mm} mm, batch {setup.config.volumes}{share if world_size() > 1 else ''}"


def _device(device: torch.device, precision: torch.dtype) -> str:
    threads = torch.get_num_threads()
    where = f"{threads} thread{'s' * (threads > 1)} of the CPU"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    workers = number_of_workers()
    loading = f"{workers} loader process{'es' * (workers > 1)}" if workers else "volumes are loaded between the steps"
    return f"{str(precision).removeprefix('torch.')} on {where}, {loading}"


def _volumes(setup: Setup) -> str:
    held = f"{len(setup.val):,} held out" if len(setup.val) else "none held out: there is no validation loss"
    return f"{len(setup.train):,} for the training, {held}"


def _probe(setup: Setup) -> list[tuple[str, str]]:
    if setup.probe is None:
        return []
    return [("probe", f"heads on the features learn from {len(setup.probe.train)} labelled cases of "
                      f"{setup.probe.folder.name}, Dice on {len(setup.probe.held_out)} others")]  # fmt: skip


def _memory(device: torch.device) -> str:
    text = f"{memory_gib(torch.device('cpu')):.2f} GiB of this process so far"
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory / 2**30
        text += f", {memory_gib(device):.2f} of the card's {total:.1f} GiB"
    return text
