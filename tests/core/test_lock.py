from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from nnssl.core import lock as module
from nnssl.core.errors import UserError
from nnssl.core.lock import STALE_S, Holder, Lock, waiting_lock

HOLD = """
import sys, time
from pathlib import Path
from nnssl.core.lock import Lock
Lock(Path(sys.argv[1]), "it").acquire()
print("held", flush=True)
time.sleep(60)
"""


def holder_elsewhere() -> Holder:
    return Holder("gpu7", 12, "2026-01-01 00:00:00+00:00", "aa", "another machine", "1")


def write_lock(path: Path, holder: Holder, age_s: float = 0.0) -> None:
    path.write_text(json.dumps(asdict(holder)))
    then = time.time() - age_s
    os.utime(path, (then, then))


def test_only_one_holds_it(tmp_path: Path) -> None:
    first, second = (Lock(tmp_path / "lock", "the run") for _ in range(2))
    assert first.try_acquire() and first.held
    assert not second.try_acquire() and not second.held
    holder = second.holder()
    assert holder is not None and holder.process == os.getpid()
    second.release()  # gives back nothing that is not its own
    assert first.held
    first.release()
    assert second.try_acquire()
    second.release()
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_names_the_holder(tmp_path: Path) -> None:
    write_lock(tmp_path / "lock", holder_elsewhere())
    with pytest.raises(UserError, match=r"the run .*gpu7"), Lock(tmp_path / "lock", "the run"):
        pass
    assert json.loads((tmp_path / "lock").read_text())["host"] == "gpu7"


def test_a_lock_of_another_machine_counts_until_it_is_stale(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    write_lock(path, holder_elsewhere(), STALE_S - 20)
    assert not Lock(path, "it").try_acquire()
    write_lock(path, holder_elsewhere(), STALE_S + 20)
    assert Lock(path, "it").holder() is None
    taken = Lock(path, "it")
    assert taken.try_acquire()
    taken.release()


def test_a_lock_of_an_ended_process_is_taken_over_at_once(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    assert not Lock(path, "it").try_acquire()
    child.kill()
    child.wait()
    with Lock(path, "it") as taken:
        assert taken.held


def test_waits_and_says_for_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL_S", 0.01)
    path, said = tmp_path / "lock", []
    write_lock(path, holder_elsewhere())

    def say(sentence: str) -> None:
        said.append(sentence)
        path.unlink()

    with waiting_lock(path, "the data", say) as lock:
        assert lock.held
    assert len(said) == 1 and "gpu7" in said[0] and "the data" in said[0]


def test_one_that_was_robbed_knows_it_and_leaves_the_robber_alone(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    slept = Lock(path, "it")
    assert slept.try_acquire()
    write_lock(path, holder_elsewhere())
    assert not slept.held
    slept.beat()
    slept.release()
    assert json.loads(path.read_text())["host"] == "gpu7"


def test_the_heartbeat_touches_the_file(tmp_path: Path) -> None:
    with Lock(tmp_path / "lock", "it") as lock:
        os.utime(lock.path, (0, 0))
        lock.beat()
        assert lock.path.stat().st_mtime > 1e9


def test_a_lock_that_changed_hands_meanwhile_is_not_taken_away(tmp_path: Path) -> None:
    path, seen = tmp_path / "lock", holder_elsewhere()
    write_lock(path, replace(seen, token="bb"))
    module._take_away(path, seen)
    assert json.loads(path.read_text())["token"] == "bb"


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise PermissionError(1, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    with Lock(tmp_path / "lock", "it"):
        assert not Lock(tmp_path / "lock", "it").try_acquire()


def _count(path: str, number: str) -> None:
    for _ in range(20):
        with waiting_lock(Path(path), "it", lambda _: None):
            counted = int(Path(number).read_text())
            time.sleep(0.001)
            Path(number).write_text(str(counted + 1))


def test_processes_exclude_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_POLL_S", 0.001)
    number = tmp_path / "number"
    number.write_text("0")
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=_count, args=(str(tmp_path / "lock"), str(number))) for _ in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert number.read_text() == "60"


def test_a_folder_that_is_gone_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        Lock(tmp_path / "gone" / "lock", "it").try_acquire()
