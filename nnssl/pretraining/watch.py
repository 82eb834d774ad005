"""The metrics of every step: averaged over the processes, checked, and summed up over the epoch."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nnssl.data.loader import LoadedBatch, Stream
from nnssl.distributed import gather_objects, world_size
from nnssl.errors import UserError
from nnssl.pretraining.checkpoint import FINAL, LATEST
from nnssl.pretraining.metrics import PendingStep, RunningMeans


class Watch:
    """Means of both streams in the epoch under way, and whether any process was told to stop.

    A step is read when the next one is queued, so that the device never waits for the log.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder, self.device = folder, device
        self.means: dict[Stream, RunningMeans] = {"train": RunningMeans(), "val": RunningMeans()}
        self.stop = False
        self._pending: deque[PendingStep] = deque()

    def add(self, stream: Stream, step: int, batch: LoadedBatch, terms: dict[str, Tensor], stop: bool) -> None:
        """Queue a step's metrics and read those of the step before.

        Raises:
            UserError: the loss or the gradient of the step before is not finite.
        """
        told = torch.tensor(float(stop), device=self.device)
        values = torch.stack([v.detach().float().reshape(()) for v in terms.values()] + [told])
        if world_size() > 1:
            torch.distributed.all_reduce(values)
            values /= world_size()
        self._pending.append(PendingStep(stream, step, batch.cases, list(terms), values))
        while len(self._pending) > 1:
            self._read(self._pending.popleft())

    def settle(self) -> None:
        """Read what is queued; raises as `add`."""
        while self._pending:
            self._read(self._pending.popleft())

    def _read(self, pending: PendingStep) -> None:
        *values, stop = pending.values.tolist()
        self.stop = stop > 0
        watched = {n: v for n, v in zip(pending.names, values, strict=True) if n in ("loss", "gradient_norm")}
        if not np.isfinite(list(watched.values())).all():
            name, value = next((n, v) for n, v in watched.items() if not np.isfinite(v))
            raise self._not_finite(pending, name, value)
        self.means[pending.stream].add(pending.names, values)

    def _not_finite(self, pending: PendingStep, name: str, value: float) -> UserError:
        last = [f for f in (LATEST, FINAL) if (self.folder / f).is_file()]
        good = str(self.folder / last[0]) if last else "none was written yet"
        cases = sorted({case for share in gather_objects(pending.cases) for case in share})
        return UserError(f"the {name.replace('_', ' ')} is {value} at step {pending.step} ({pending.stream}), cases "
                         f"{', '.join(cases)}; last good checkpoint: {good}; look at those "
                         f"volumes, or lower the rate with -o learning_rate=...")  # fmt: skip
