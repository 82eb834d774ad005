from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace

import pytest

from nnssl.core.lock import Lock
from nnssl.data import shared_work
from nnssl.data.preprocessing import Prepared
from nnssl.data.raw import RawCase
from nnssl.data.records import Record, Records
from nnssl.data.shared_work import SharedWork
from nnssl.data.storage import claimed, claimed_cases

CASES = [RawCase(name, ()) for name in "abc"]


class Job:
    """Prepares cases, and notes what it was given while they were claimed."""

    def __init__(self, folder: Path, replaced: Collection[str] = ()) -> None:
        self.folder, self.made, self.said = folder, list[str](), list[str]()
        self.work = SharedWork(
            folder, Records(folder), "plans", self._prepare, self._finish, replaced, self.said.append
        )  # fmt: skip

    def run(self) -> dict[str, str | None]:
        return {record.case: record.reason for record in self.work.run(CASES, 1, show_progress=False)}

    def _prepare(self, case: RawCase | str) -> Prepared:
        assert isinstance(case, RawCase) and case.name in claimed_cases(self.folder)
        self.made.append(case.name)
        return Prepared(case.name)

    def _finish(self, case: Prepared) -> Record:
        return Record(case.name, None, "plans", prepared="by me")


def _meanwhile(patch: pytest.MonkeyPatch, do: Callable[[], object]) -> list[float]:
    """What another job does while this one waits."""
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        do()

    patch.setattr(shared_work, "time", SimpleNamespace(sleep=sleep))  # locks sleep too, in their thread
    return waits


def _claim(folder: Path, case: str) -> Lock:
    lock = claimed(folder, case)
    assert lock is not None
    return lock


def test_SharedWork__alone(tmp_path: Path) -> None:
    folder = tmp_path / "home" / "data"
    job = Job(folder)
    assert job.run() == dict.fromkeys("abc") and job.made == ["a", "b", "c"]
    assert [record.case for record in Records(folder).all()] == ["a", "b", "c"]
    assert not (tmp_path / "home" / ".writing").exists()


def test_SharedWork__what_another_job_makes_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, job = tmp_path / "data", Job(tmp_path / "data")
    claims = {name: _claim(folder, name) for name in "bc"}
    Records(folder).append([Record("a", None, "plans", prepared="by another job, after this one had looked")])

    def another() -> None:
        Records(folder).append(
            [Record("b", None, "plans", prepared="now"), Record("c", None, "plans", prepared="now", reason="2-D")]
        )
        for claim in claims.values():
            claim.release()

    waits = _meanwhile(monkeypatch, another)
    assert job.run() == {"a": None, "b": None, "c": "2-D"} and job.made == []
    assert len(waits) == 1 and len(job.said) == 1 and "b in " in job.said[0]  # one sentence for one holder


def test_SharedWork__what_another_job_leaves_behind_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = _claim(tmp_path / "data", "b")
    Records(tmp_path / "data").append([Record("b", None, begun=True)])
    _meanwhile(monkeypatch, claim.release)
    job = Job(tmp_path / "data")
    assert job.run() == dict.fromkeys("abc") and job.made == ["a", "c", "b"]


def test_SharedWork__an_older_record_does_not_count(tmp_path: Path) -> None:
    Records(tmp_path / "data").append([Record("a", None, "plans", prepared="long ago")])
    job = Job(tmp_path / "data")
    Records(tmp_path / "data").append(
        [Record("a", None, "plans", prepared="long ago", orientation="LPS")]
    )  # renewed by another
    job.run()
    assert job.made == ["a", "b", "c"]


def test_SharedWork__what_is_made_with_other_plans_meanwhile_does_not_count(tmp_path: Path) -> None:
    job = Job(tmp_path / "data")
    Records(tmp_path / "data").append([Record("a", None, "other plans", prepared="now")])
    job.run()
    assert job.made == ["a", "b", "c"]


def test_SharedWork__a_volume_that_is_replaced_is_not_to_be_trusted_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(tmp_path / "data", replaced={"b"})
    begun: list[str] = []
    prepare = job.work.prepare

    def watched(case: RawCase | str) -> Prepared:
        begun.extend(record.case for record in Records(tmp_path / "data").all() if record.begun)
        return prepare(case)

    job.work.prepare = watched
    job.run()
    assert begun == ["b"] and not any(record.begun for record in Records(tmp_path / "data").all())


def test_SharedWork__an_error_gives_all_claims_back(tmp_path: Path) -> None:
    job = Job(tmp_path / "data")

    def fails(case: RawCase | str) -> Prepared:
        raise OSError("full")

    job.work.prepare = fails
    with pytest.raises(OSError, match="full"):
        job.run()
    assert not (tmp_path / ".writing").exists()
