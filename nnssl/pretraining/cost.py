"""What an epoch costs: time by what it went to, samples, device-hours, energy."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from nnssl.core.distributed import gather_objects, world_size
from nnssl.pretraining.metrics import Row


class EnergyMeter:
    """The total-energy counter of an NVIDIA card (Volta or newer); only differences mean something.

    It counts the whole card, other processes on it included. Without such a counter (CPU, an older card, a part of a
    card, no `nvidia-ml-py`) nothing is reported: `joules` is None.

    Args:
        device: of this process.
        nvml: the module `pynvml`, or what stands for it; None: that module, if it is installed.
    """

    def __init__(self, device: torch.device, nvml: Any = None) -> None:
        self.device_name = ""
        self._nvml: Any = None
        self._handle: Any = None
        if device.type == "cuda":
            self._open(device, nvml or _pynvml())

    def joules(self) -> float | None:
        """Energy since the driver was loaded."""
        if self._handle is None:
            return None
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1000  # it is in mJ
        except self._nvml.NVMLError:
            return None

    def _open(self, device: torch.device, nvml: Any) -> None:
        if nvml is None:
            return
        # NVML numbers the machine's cards, PyTorch those of CUDA_VISIBLE_DEVICES, possibly in another order
        self.device_name = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        try:
            nvml.nvmlInit()
            self._nvml, self._handle = nvml, nvml.nvmlDeviceGetHandleByUUID(self.device_name.encode())
        except nvml.NVMLError:
            self._handle = None


def _pynvml() -> Any:
    if not torch.cuda.is_available():  # a pretended card has no counter, and no driver to ask
        return None
    try:
        import pynvml
    except ImportError:
        return None
    return pynvml


Use = Literal["waiting", "training", "probe", "other"]  # for the data; steps; the online probe; validation and files
_JOULES_PER_KWH = 3.6e6


class EpochCost:
    """Wall time and energy since the last epoch's end; plain numbers in `state`, so that a checkpoint can hold them.

    Every moment counts: what follows an epoch's row, such as its checkpoint, belongs to the next epoch. What a killed
    process did after its last checkpoint is lost and not counted.

    Args:
        meter: of this process's device.
        state: of an epoch that was interrupted, from `state`.
    """

    def __init__(self, meter: EnergyMeter, state: dict[str, Any] | None = None) -> None:
        self.meter = meter
        self._mark, self._joules_mark = time.perf_counter(), meter.joules()
        self.seconds: dict[Use, float]
        self.samples: int
        self.joules: dict[str, float] | None  # by device, so that processes that share one do not count it twice
        self._begin(state)

    def lap(self, use: Use) -> None:
        """The time since the last lap went to this."""
        now = time.perf_counter()
        self.seconds[use] += now - self._mark
        self._mark = now

    def move(self, source: Use, target: Use, seconds: float) -> None:
        """That part of one share belongs to another one."""
        self.seconds[source] -= seconds
        self.seconds[target] += seconds

    @property
    def steps_seconds(self) -> float:
        """Of the training steps with their data."""
        return max(self.seconds["waiting"] + self.seconds["training"], 1e-9)

    @property
    def samples_per_second(self) -> float:
        """Of the training steps; what a probe takes is left out."""
        return self.samples / self.steps_seconds

    @property
    def data_wait(self) -> float:
        """Share of the training steps' time that was spent waiting for data."""
        return self.seconds["waiting"] / self.steps_seconds

    def share(self, use: Use) -> float:
        """Part of the epoch's wall time so far that went to this."""
        return self.seconds[use] / max(sum(self.seconds.values()), 1e-9)

    def state(self) -> dict[str, Any]:
        """What a checkpoint in the middle of an epoch keeps."""
        self.lap("other")
        self._read_energy()
        return {"seconds": dict(self.seconds), "samples": self.samples, "joules": self.joules}

    def finish_epoch(self) -> Row:
        """The epoch's cost over all processes, which must all call this; the next epoch begins."""
        self.lap("other")
        self._read_energy()
        wall = sum(self.seconds.values())
        row: Row = {
            "samples_per_second": self.samples_per_second,
            "data_wait": self.data_wait,
            "samples": self.samples,
            "seconds": self.steps_seconds,
            "wall_seconds": wall,
            "device_hours": wall * world_size() / 3600,
            "energy_kwh": _kwh(gather_objects(self.joules)),
        }
        self._begin(None)
        return row

    def _begin(self, state: dict[str, Any] | None) -> None:
        self.seconds = {"waiting": 0.0, "training": 0.0, "probe": 0.0, "other": 0.0}
        self.samples, self.joules = 0, {}
        if state:
            self.seconds.update(state["seconds"])
            self.samples, self.joules = state["samples"], state["joules"]

    def _read_energy(self) -> None:
        """Add what the device took since the last reading; None from the first one on that fails."""
        now, before = self.meter.joules(), self._joules_mark
        self._joules_mark = now
        if now is None or before is None or self.joules is None:
            self.joules = None
            return
        name = self.meter.device_name
        self.joules = {**self.joules, name: self.joules.get(name, 0.0) + now - before}


def _kwh(shares: list[dict[str, float] | None]) -> float | None:
    """Energy of all devices together, each once; None where one of the processes has no counter."""
    taken: dict[str, float] = {}
    for share in shares:
        if share is None:
            return None
        for device, joules in share.items():
            taken[device] = max(taken.get(device, 0.0), joules)
    return sum(taken.values()) / _JOULES_PER_KWH


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

    def take(self) -> float:
        """Seconds since the last call; `total` goes on."""
        while self._unfinished and self._unfinished[0][2].query():
            counted, first, last = self._unfinished.popleft()
            self._add(max(0.0, first.elapsed_time(last) / 1000 - counted))
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    @property
    def share(self) -> float:
        """Of the time since the clock was made."""
        return self.total / max(time.perf_counter() - self.began, 1e-9)

    def _add(self, seconds: float) -> None:
        self._seconds += seconds
        self.total += seconds
