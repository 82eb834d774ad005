"""What a run tells after every epoch and at its end: files, log lines and trackers of the main process."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Protocol

import torch

from nnssl.core.distributed import is_main, world_size
from nnssl.core.errors import UserError
from nnssl.core.files import write_json
from nnssl.core.signals import Interrupted
from nnssl.core.system import dispensable, why
from nnssl.methods.options import to_plain
from nnssl.pretraining.folder import WARNINGS, earlier_warnings
from nnssl.pretraining.health import collapse_warning, fall_warning
from nnssl.pretraining.metrics import (
    Row,
    epoch_line,
    read_rows,
    summarise,
    summary_lines,
    totals,
    write_rows,
)
from nnssl.pretraining.progress import draw_progress
from nnssl.pretraining.setup import Setup

log = logging.getLogger("nnssl")

METRICS, SUMMARY = "metrics.jsonl", "summary.json"


class Reporter:
    """Open while the run goes on, so that trackers learn how it ends.

    Args:
        setup: of the run.
        epoch: finished epochs.
    """

    def __init__(self, setup: Setup, epoch: int) -> None:
        self.setup, self.first = setup, epoch
        self._trackers: list[Tracker] = []

    def rows(self, device: torch.device) -> list[Row]:
        """Rows of the finished epochs that such a device made."""
        rows = read_rows(self.setup.folder / METRICS)
        return [row for row in rows if row["epoch"] <= self.first and row.get("device") == device.type]

    def epoch(self, row: Row) -> None:
        """Add the row of an epoch to `metrics.jsonl`, draw `progress.png`, write the epoch's line.

        Rows of the same and of later epochs go: an earlier process wrote them after its last checkpoint.
        """
        file = self.setup.folder / METRICS
        rows = [r for r in read_rows(file) if r["epoch"] < row["epoch"]] + [row]
        row.update(totals(rows))
        write_rows(file, rows)
        with dispensable("progress.png"):
            draw_progress(rows, self.setup.folder / "progress.png", self.setup.folder.parent.name)
        method = self.setup.method_class
        cause, line = method.collapse_cause, epoch_line(row, self.setup.config.num_epochs)
        if not method.collapses:
            log.info(line)
        elif fallen := fall_warning(row, cause):
            log.warning(f"{line}  {fallen}")
        else:
            log.info(line)
            before = collapse_warning(rows[-2], cause) if len(rows) > 1 else None
            if (warning := collapse_warning(row, cause)) and before is None:
                log.warning(warning)
        self._tell_trackers(lambda tracker: tracker.log(row))

    def summary(self) -> None:
        """Write `summary.json` and its lines, after the last epoch."""
        if rows := read_rows(self.setup.folder / METRICS):
            summary = {**summarise(rows, world_size()), "hardware": hardware(rows[-1]["device"]),
                       WARNINGS: self._warnings(rows)}  # fmt: skip
            write_json(self.setup.folder / SUMMARY, summary)
            for line in summary_lines(summary):
                log.info(line)

    def _warnings(self, rows: Sequence[Row]) -> list[str]:
        """Of before the first step, and the last one of each kind about the embeddings."""
        method, found = self.setup.method_class, earlier_warnings(self.setup.folder)
        for of_row in (collapse_warning, fall_warning) if method.collapses else ():
            said = [f"epoch {row['epoch']}: {text}" for row in rows if (text := of_row(row, method.collapse_cause))]
            found += said[-1:]
        return found

    def __enter__(self) -> Reporter:
        """Open the trackers that are asked for; raises as `open_trackers` and `read_rows`."""
        if is_main():
            read_rows(self.setup.folder / METRICS)  # not only after the first epoch
            self._trackers = open_trackers(self.setup, self.first)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tell_trackers(lambda tracker: tracker.close(kind is not None and not issubclass(kind, Interrupted)))

    def _tell_trackers(self, tell: Callable[[Tracker], None]) -> None:
        """If a tracker fails, the run goes on without it: `metrics.jsonl` has the rows, and weeks are at stake."""
        for tracker in list(self._trackers):
            try:
                tell(tracker)
            except Exception as error:
                self._trackers.remove(tracker)
                said = why(error) or f"{type(error).__name__}: {error}"
                log.warning(f"{tracker.name} is left out from now on, metrics.jsonl goes on ({' '.join(said.split())})")


def hardware(device: str) -> str:
    """Name of this process's card, or the number of the machine's CPU cores; for a model card."""
    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {os.cpu_count()} cores"


TENSORBOARD = "nnssl_tensorboard"
WANDB = "nnUNet_wandb_enabled"  # nnU-Net's own, as are the two below
_WANDB_PROJECT, _WANDB_MODE = "nnUNet_wandb_project", "nnUNet_wandb_mode"


class Tracker(Protocol):
    """Where the rows go."""

    name: str

    def log(self, row: Row) -> None:
        """The row of an epoch."""

    def close(self, failed: bool) -> None:
        """The process ends, by an error or not."""


def check_trackers() -> None:
    """Refuse a run that asks for a tracker which is not installed.

    Raises:
        UserError: saying how to install it, or that a variable is neither 0 nor 1.
    """
    if _enabled(TENSORBOARD) and not _installed("tensorboard"):
        raise UserError(f"{TENSORBOARD} asks for TensorBoard, which is not installed; run pip install "
                        f"'nnssl[tensorboard]', or set {TENSORBOARD}=0")  # fmt: skip
    if _enabled(WANDB) and not _installed("wandb"):
        raise UserError(f"{WANDB} asks for Weights & Biases, which is not installed; run pip install wandb, or set "
                        f"{WANDB}=0")  # fmt: skip


def open_trackers(setup: Setup, epoch: int) -> list[Tracker]:
    """Those that the environment asks for.

    Args:
        setup: of the run.
        epoch: finished epochs; the trackers replace later ones.

    Raises:
        UserError: see `check_trackers`; Weights & Biases cannot be reached.
    """
    check_trackers()
    trackers: list[Tracker] = []
    if _enabled(TENSORBOARD):
        trackers.append(_TensorBoard(setup.folder / "tensorboard", epoch))
    if _enabled(WANDB):
        trackers.append(_Wandb(setup))
    return trackers


class _TensorBoard:
    name = "TensorBoard"

    def __init__(self, folder: Path, epoch: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer: Any = SummaryWriter(str(folder), purge_step=epoch + 1)

    def log(self, row: Row) -> None:
        for name, value in _numbers(row).items():
            self.writer.add_scalar(name, value, row["epoch"])
        self.writer.flush()

    def close(self, failed: bool) -> None:
        self.writer.close()


class _Wandb:
    """As nnU-Net's `WandbLogger`: its folder is inside the run's, and a continued run goes on in it."""

    name = "Weights & Biases"

    def __init__(self, setup: Setup) -> None:
        wandb = _wandb()
        resumed = setup.resume is not None
        if not resumed:
            shutil.rmtree(setup.folder / "wandb", ignore_errors=True)
        config = {"method": setup.method, "options": to_plain(setup.config), "configuration": setup.configuration,
                  "plans": setup.plans["plans_name"], "fold": setup.fold, "JobID": _job()}  # fmt: skip
        try:
            self.run: Any = wandb.init(
                project=os.environ.get(_WANDB_PROJECT, "nnunet"),
                name=f"{setup.folder.parent.name}/{setup.folder.name}",
                dir=str(setup.folder),
                id=_wandb_id(setup.folder / "wandb" / "latest-run") if resumed else None,
                mode=os.environ.get(_WANDB_MODE, "online"),
                resume="allow" if resumed else "never",
            )
        except wandb.Error as error:
            raise UserError(f"Weights & Biases cannot be used: {str(error).splitlines()[0]}; log in with wandb login, "
                            f"or set {_WANDB_MODE}=offline or {WANDB}=0") from error  # fmt: skip
        self.run.config.update(config, allow_val_change=True)
        self.first = self.run.step if resumed else 0

    def log(self, row: Row) -> None:
        if row["epoch"] >= self.first:  # W&B takes no step twice
            self.run.log(_numbers(row), step=row["epoch"])

    def close(self, failed: bool) -> None:
        self.run.finish(exit_code=int(failed))


def _wandb() -> ModuleType:
    import wandb

    module: ModuleType = wandb
    return module


def _wandb_id(latest: Path) -> str | None:
    """W&B's name for the run that the folder holds: its file is run-ID.wandb."""
    files = sorted(latest.glob("run-*.wandb")) if latest.is_dir() else []
    return files[0].stem.removeprefix("run-") if files else None


def _job() -> str | None:
    return os.environ.get("SLURM_JOB_ID") or os.environ.get("LSB_JOBID")


def _numbers(row: Row) -> dict[str, float]:
    return {name: value for name, value in row.items() if isinstance(value, int | float) and name != "epoch"}


def _installed(package: str) -> bool:
    found = importlib.util.find_spec(package)
    return found is not None and found.origin is not None  # a mere folder of that name, such as W&B's own, has none


def _enabled(variable: str) -> bool:
    value = os.environ.get(variable, "0")
    if value in ("", "0", "False", "false"):
        return False
    if value in ("1", "True", "true"):
        return True
    raise UserError(f"{variable} is 0 or 1, not {value!r}")
