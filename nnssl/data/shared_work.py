"""Cases of one folder that several jobs prepare together, each case once.

A job claims a case before it hands it to its processes, and no more cases than it has processes. What another job has
claimed is looked at again at the end: done by then, or left behind by a job that ended, and then taken over.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from nnssl.core.lock import Lock
from nnssl.data.pool import map_cases
from nnssl.data.preprocessing import Prepared
from nnssl.data.raw import RawCase
from nnssl.data.records import Record, Records
from nnssl.data.storage import claim_of, claimed, remove_empty_temporary_folder

Task = RawCase | str  # a raw case, or the name of a preprocessed one that lacks its body mask

_POLL_S = 1.0

logger = logging.getLogger("nnssl")


@dataclass
class SharedWork:
    """Prepares cases together with whatever other jobs prepare them.

    Args:
        folder: of the volumes.
        records: of the folder, as they were when it was decided what to prepare.
        settings: digest of what the volumes are made with; what another job makes with others is made again.
        prepare: makes a case; picklable.
        finish: called with what `prepare` returns, while the case is still claimed; returns its record.
        replaced: cases that have a volume, which is not to be trusted while the new one takes its place.
        say: takes a sentence for the user.
    """

    folder: Path
    records: Records
    settings: str
    prepare: Callable[[Task], Prepared]
    finish: Callable[[Prepared], Record]
    replaced: Collection[str] = ()
    say: Callable[[str], object] = logger.info
    _claims: dict[str, Lock] = field(default_factory=dict, init=False)
    _by_others: list[Record] = field(default_factory=list, init=False)
    _awaited: list[Task] = field(default_factory=list, init=False)
    _told: set[tuple[str, int]] = field(default_factory=set, init=False)

    def run(self, cases: Sequence[Task], num_processes: int, show_progress: bool) -> Iterator[Record]:
        """Records of all cases, as they get ready, by whichever job.

        Raises:
            UserError, OSError: see `map_cases` and `prepare`.
        """
        prepared_before = {name: _prepared(self.records.get(name)) for name in map(_name, cases)}
        try:
            while cases:
                self._awaited = []
                tasks = self._claimable(cases, prepared_before)
                if (first := next(tasks, None)) is not None:
                    yield from self._prepare_all(chain([first], tasks), num_processes, len(cases), show_progress)
                yield from self._results_of_others()
                if len(self._awaited) == len(cases):
                    self._wait()
                cases, show_progress = self._awaited, False
        finally:
            for name in list(self._claims):
                self._release(name)
            remove_empty_temporary_folder(self.folder)

    def _prepare_all(
        self, tasks: Iterator[Task], num_processes: int, total: int, show_progress: bool
    ) -> Iterator[Record]:
        for prepared in map_cases(self.prepare, tasks, num_processes, "Preprocessing", show_progress, total):
            record = self.finish(prepared)
            self.records.append([record])  # before the claim is given back: whoever gets it sees the record
            self._release(record.case)
            yield record
            yield from self._results_of_others()

    def _claimable(self, cases: Sequence[Task], prepared_before: dict[str, str | None]) -> Iterator[Task]:
        """Cases as this job gets hold of them, one at a time; those of others go to their lists."""
        for case in cases:
            name = _name(case)
            claim = claimed(self.folder, name)
            if claim is None:
                self._awaited.append(case)
                continue
            self._claims[name] = claim
            self.records.refresh()
            record = self.records.get(name)
            if record is not None and self._is_result(record, prepared_before[name]):
                self._by_others.append(record)
                self._release(name)
                continue
            if name in self.replaced:
                begun = record or Record(name, None)
                self.records.append([replace(begun, begun=True)])
            yield case

    def _is_result(self, record: Record, prepared_before: str | None) -> bool:
        """Whether another job has prepared a case since this one decided to."""
        return not record.begun and record.prepared != prepared_before and record.settings == self.settings

    def _results_of_others(self) -> Iterator[Record]:
        found, self._by_others = self._by_others, []
        yield from found

    def _wait(self) -> None:
        """All that is left is claimed by others: say by whom, and give them a moment."""
        for name in map(_name, self._awaited):
            holder = claim_of(self.folder, name).holder()
            if holder is not None and (who := (holder.host, holder.process)) not in self._told:
                self._told.add(who)
                self.say(f"waiting for {name} in {self.folder}, which is prepared by {holder}")
                break
        time.sleep(_POLL_S)

    def _release(self, name: str) -> None:
        self._claims.pop(name).release()


def _name(case: Task) -> str:
    return case if isinstance(case, str) else case.name


def _prepared(record: Record | None) -> str | None:
    return None if record is None else record.prepared
