"""One training step of a method, timed part by part as the loop does it."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from gpu_setups import BenchmarkSetup, smaller
from gpu_variants import PACKAGE, choose_kernel, forced_layout, prepare
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nnssl.core.errors import UserError
from nnssl.data.loader import RelativePosition, SampleDataset
from nnssl.methods.base import Batch, Method, to_device
from nnssl.methods.registry import get_method
from nnssl.pretraining.metrics import memory_gib
from nnssl.pretraining.optimisation import build_optimiser, choose_precision

PARTS = ("augmentation", "forward", "backward", "optimiser")
_WARM = 3  # steps before the measured ones: cuDNN tries its algorithms, the optimiser makes its moments
_MOST_STEPS = 20


@dataclass(frozen=True)
class StepResult:
    """What a step costs; None where it was not measured.

    Args:
        method: its name.
        variant: "package", or what was tried instead.
        network: class of the backbone.
        parameters: that are trained.
        batch, crops, patch: volumes a step, crops of each that enter the network (None: not an option), and their size.
        precision: of the autocast.
        step: seconds, median.
        parts: seconds of the parts of a step by name, medians; `augmentation` includes the copy to the card.
        steps: how many were measured.
        memory: peak in GiB (allocated on the card; on a CPU of the process so far).
        flop: of forward and backward pass, what gradient checkpoints compute again included.
        sampling: seconds that a loader worker takes for one volume.
        out_of_memory: batches (volumes, or crops of one volume) that did not fit.
        rehearsed: peak in GiB by the package's rehearsal on fake tensors, of the package's own step.
    """

    method: str
    variant: str
    network: str
    parameters: int
    batch: int
    crops: int | None
    patch: tuple[int, ...]
    precision: str
    step: float
    parts: dict[str, float]
    steps: int
    memory: float
    flop: int | None
    sampling: float
    out_of_memory: tuple[str, ...] = ()
    rehearsed: float | None = None

    @property
    def samples_per_second(self) -> float:
        """Volumes a second, as the loop's epoch rows count."""
        return self.batch / self.step

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> StepResult:
        """What `Report` wrote."""
        known = {key: value for key, value in values.items() if key != "samples_per_second"}
        return cls(**{**known, "patch": tuple(known["patch"]), "out_of_memory": tuple(known["out_of_memory"])})


class Timeline:
    """Moments on the device's clock: CUDA events, which wait for nothing, or the wall clock on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Mark the moment when the card has finished everything launched before."""
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Between the moments; waits for the card."""
        if not self.cuda:
            return [after - before for before, after in zip(self._marks, self._marks[1:], strict=False)]
        torch.cuda.synchronize()
        pairs = zip(self._marks, self._marks[1:], strict=False)
        return [before.elapsed_time(after) / 1000 for before, after in pairs]


class Stepper:
    """A method with its optimiser and one batch, in the order and with the settings of the loop."""

    def __init__(self, setup: BenchmarkSetup, device: torch.device, variant: str = PACKAGE) -> None:
        self.setup, self.device = setup, device
        torch.manual_seed(0)
        with forced_layout(variant):
            self.method: Method = prepare(setup.build_method(), variant).to(device)
        self.optimiser = choose_kernel(build_optimiser(setup.config, self.method.parameters()), variant)
        self.precision = choose_precision(setup.config, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.precision == torch.float16)
        self.method.train()

    def step(self, batch: Batch, number: int, mark: Callable[[], None]) -> None:
        """One step; `mark` is called after every part."""
        with torch.no_grad():
            views = self.method.augment(to_device(batch, self.device, self.method.host_keys))
        mark()
        loss = self._loss(views)
        mark()
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        mark()
        self.scaler.unscale_(self.optimiser)
        nn.utils.clip_grad_norm_(self.method.parameters(), self.setup.config.gradient_clip or float("inf"))
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.method.after_step(number)
        mark()

    def flop(self, batch: Batch) -> int | None:
        """Operations of one forward and backward pass, two a multiply-add; None where the count takes too much memory.

        Convolutions and matrix products count, as in torch's counter.
        """
        with torch.no_grad():
            views = self.method.augment(to_device(batch, self.device, self.method.host_keys))
        self.optimiser.zero_grad(set_to_none=True)
        counter = FlopCounterMode(display=False)
        try:
            with counter:
                self._loss(views).backward()
        except torch.cuda.OutOfMemoryError:
            return None
        return int(counter.get_total_flops())

    def _loss(self, views: Batch) -> Tensor:
        enabled = self.precision != torch.float32
        with torch.autocast(self.device.type, dtype=self.precision if enabled else None, enabled=enabled):
            loss: Tensor = self.method(views).loss
        return loss


def measure(
    setup: BenchmarkSetup,
    device: torch.device,
    seconds: float,
    small: bool = False,
    variant: str = PACKAGE,
    count: bool = True,
) -> StepResult:
    """Measure steps for about `seconds`, at least three, after the warm-up; fewer if `small`.

    Operations are counted if `count`, which takes a further pass.

    Raises:
        torch.cuda.OutOfMemoryError: the batch does not fit.
    """
    batch, sampling = sampled(setup, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    stepper = Stepper(setup, device, variant)
    with forced_layout(variant):
        rows = _timed_steps(stepper, batch, 0.0 if small else seconds, 1 if small else _WARM)
        memory = memory_gib(device)
        flop = stepper.flop(batch) if count else None
    parts = {name: median(column) for name, column in zip(PARTS, zip(*rows, strict=True), strict=True)}
    config, backbone = setup.config, stepper.method.backbone
    return StepResult(
        setup.method, variant, type(backbone).__name__,
        sum(p.numel() for p in stepper.method.parameters() if p.requires_grad),
        int(config.batch_size or 0), getattr(config, "crops", None), tuple(config.patch_size or ()),
        str(stepper.precision).removeprefix("torch."), median(sum(row) for row in rows), parts, len(rows), memory, flop,
        sampling,
    )  # fmt: skip


def measure_what_fits(
    setup: BenchmarkSetup, run: Callable[[BenchmarkSetup], StepResult], device: torch.device
) -> StepResult:
    """Halve the batch, then the crops of one volume, until `run` finds memory for it.

    Raises:
        UserError: not even the smallest batch fits, or the method refuses it.
    """
    failed: list[str] = []
    while True:
        # outside of the handler: an exception keeps the tensors of all frames that it went through
        with contextlib.suppress(torch.cuda.OutOfMemoryError):
            return replace(run(setup), out_of_memory=tuple(failed))
        release(device)
        config = setup.config
        failed.append(f"{config.batch_size} x {getattr(config, 'crops', 1)}")
        config_left = smaller(config)
        if config_left is None:
            raise UserError(f"out of memory with {' and '.join(failed)} (volumes x crops)")
        setup = replace(setup, config=config_left)


def release(device: torch.device) -> None:
    """Free the memory of the last part."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def sampled(setup: BenchmarkSetup, device: torch.device) -> tuple[Batch, float]:
    """The first batch of a run, in pinned memory for a card, and the seconds that one volume took."""
    method = get_method(setup.method)
    dataset = SampleDataset(method, setup.config, setup.train, setup.val, RelativePosition())
    samples, seconds = [], []
    for position in range(int(setup.config.batch_size or 0)):
        begin = time.perf_counter()
        _, sample = dataset["train", 0, position]
        seconds.append(time.perf_counter() - begin)
        if isinstance(sample, str):
            raise UserError(sample)
        samples.append(sample)
    batch = method.collate(samples)
    return ({k: v.pin_memory() for k, v in batch.items()} if device.type == "cuda" else batch), median(seconds)


def _timed_steps(stepper: Stepper, batch: Batch, seconds: float, warm: int) -> list[list[float]]:
    """Seconds of every part of every measured step."""

    def nothing() -> None:
        pass

    for number in range(warm):
        begin = time.perf_counter()
        stepper.step(batch, number, nothing)
        if stepper.device.type == "cuda":
            torch.cuda.synchronize()
        last = time.perf_counter() - begin
    count = min(_MOST_STEPS, max(3, int(seconds / last)))
    timeline = Timeline(stepper.device)
    timeline.mark()
    for number in range(warm, warm + count):
        stepper.step(batch, number, timeline.mark)
    spans = timeline.seconds()
    return [spans[i : i + len(PARTS)] for i in range(0, len(spans), len(PARTS))]
