"""What a run tells after every epoch and at its end: files, log lines and trackers of the main process."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType

import torch

from nnssl.core.json_files import write_json
from nnssl.core.signals import Interrupted
from nnssl.core.system import dispensable, why
from nnssl.distributed import is_main, world_size
from nnssl.pretraining.metrics import Row, collapse_warning, epoch_line, read_rows, write_rows
from nnssl.pretraining.pictures import draw_progress
from nnssl.pretraining.setup import Setup
from nnssl.pretraining.summary import summarise, summary_lines, totals
from nnssl.pretraining.trackers import Tracker, open_trackers

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
        """Those of finished epochs that such a device has made."""
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
        log.info(epoch_line(row, self.setup.config.num_epochs))
        if warning := collapse_warning(row):
            log.warning(warning)
        self._tell_trackers(lambda tracker: tracker.log(row))

    def summary(self) -> None:
        """Write `summary.json` and its lines, after the last epoch."""
        if rows := read_rows(self.setup.folder / METRICS):
            summary = summarise(rows, world_size())
            write_json(self.setup.folder / SUMMARY, summary)
            for line in summary_lines(summary):
                log.info(line)

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
        """Whatever ails a tracker, the run goes on without it: `metrics.jsonl` has the rows, and weeks are at stake."""
        for tracker in list(self._trackers):
            try:
                tell(tracker)
            except Exception as error:
                self._trackers.remove(tracker)
                said = why(error) or f"{type(error).__name__}: {error}"
                log.warning(f"{tracker.name} is left out from now on, metrics.jsonl goes on ({' '.join(said.split())})")
