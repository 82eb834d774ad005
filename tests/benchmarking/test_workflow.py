from __future__ import annotations

import logging
import os
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nnssl.benchmarking import workflow
from nnssl.benchmarking.workflow import State, Task, TaskFailed, duration, run_task
from nnssl.core.errors import UserError


@dataclass(frozen=True)
class _Task(Task):
    """Finished when a command ended well; begun as soon as there is a checkpoint."""

    ended: list[tuple[int | None, bool]] = field(default_factory=list)

    def state(self) -> State:
        if (0, True) in self.ended or (0, False) in self.ended:
            return "finished"
        return "begun" if (self.home / "model" / "checkpoint").is_file() else "missing"

    def note(self, seconds: float, code: int | None, anew: bool) -> float:
        self.ended.append((code, anew))
        return seconds + 100


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nnssl")


def _task(home: Path, code: str, **more: object) -> _Task:
    return _Task(home, "key", "title", (Path(sys.executable).name, "-c", code), **more)  # type: ignore[arg-type]


def test_run_task__prints_the_command_and_keeps_its_output(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    variables = {"nnssl_x": "a b"}
    task = _task(tmp_path, "print('loud'); print('quiet')", variables=variables, shown=re.compile("loud"))
    line = task.line()
    run_task(task)
    assert caplog.messages == [f"$ {line}", "  loud", "  took 1 min 40 s"] and line.startswith("nnssl_x='a b' python")
    assert (tmp_path / "logs" / "key.log").read_text() == "loud\nquiet\n"
    assert task.ended == [(0, True)]


def test_run_task__environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("mine", "2")
    code = "import os; print(os.environ['mine'], os.environ['nnssl_num_epochs'])"
    run_task(_task(tmp_path, code, variables={"nnssl_num_epochs": "3"}))
    assert (tmp_path / "logs" / "key.log").read_text() == "2 3\n"


@pytest.mark.parametrize("given", [None, "ACTIVE"])
def test_run_task__does_not_wait_busily_unless_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    run_task(_task(tmp_path, "import os; print(os.environ['OMP_WAIT_POLICY'])"))
    assert (tmp_path / "logs" / "key.log").read_text() == f"{given or 'PASSIVE'}\n"


def test_run_task__lines_of_nnunet_are_made_readable(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    line = "2026-01-31 04:43:48.368424: Pseudo dice [np.float32(0.7641), np.float32(0.0)] "
    run_task(_task(tmp_path, f"print({line!r})", shown=re.compile("Pseudo")))
    assert caplog.messages[1] == "  Pseudo dice [0.7641, 0.0]"


def test_run_task__a_failure_shows_the_last_lines(tmp_path: Path) -> None:
    task = _task(tmp_path, "print('too few cases'); raise SystemExit(7)")
    with pytest.raises(TaskFailed, match=r"(?s)title ended with exit code 7.*too few cases") as failed:
        run_task(task)
    assert failed.value.code == 7 and task.ended == [(7, True)]


def test_run_task__a_command_that_leaves_its_work_undone_has_failed(tmp_path: Path) -> None:
    class Undone(_Task):
        def state(self) -> State:
            return "trained"

    with pytest.raises(TaskFailed, match="exit code 0"):
        run_task(Undone(tmp_path, "key", "title", (Path(sys.executable).name, "-c", "")))


def test_run_task__removes_what_a_cut_off_command_left(tmp_path: Path) -> None:
    product = tmp_path / "model"
    product.mkdir()
    (product / "half").write_text("")
    run_task(_task(tmp_path, "", product=product))
    assert not product.exists()


def test_run_task__continues_from_a_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    product = tmp_path / "model"
    product.mkdir()
    (product / "checkpoint").write_text("")
    task = _task(tmp_path, "import sys; print(sys.argv[1:])", product=product)
    run_task(task)
    assert caplog.messages[0].endswith(" --c") and caplog.messages[1] == "  ['--c']"
    assert (product / "checkpoint").exists() and task.ended == [(0, False)]


def test_run_task__unknown_command(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nnUNetv9_train is not installed"):
        run_task(_Task(tmp_path, "key", "title", ("nnUNetv9_train",)))


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups")
def test_run_task__interrupted_ends_the_command_and_its_workers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    worker = "import time; time.sleep(600)"
    code = "\n".join([
        "import os, subprocess, sys, time",
        f"worker = subprocess.Popen([sys.executable, '-c', {worker!r}], stdout=subprocess.DEVNULL)",
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{worker.pid}}')",
        "print('up', flush=True)",
        "time.sleep(600)",
    ])  # fmt: skip

    def interrupt(message: str) -> None:
        if message == "  up":
            raise KeyboardInterrupt

    monkeypatch.setattr(workflow.log, "info", interrupt)
    task = _task(tmp_path, code)
    with pytest.raises(KeyboardInterrupt):
        run_task(task)
    assert task.ended == [(None, True)]
    deadline = time.monotonic() + 60  # a killed process needs a moment
    for pid in map(int, pids.read_text().split()):
        while _runs(pid):
            assert time.monotonic() < deadline
            time.sleep(0.02)


def _runs(pid: int) -> bool:
    """Whether a process exists and is more than an entry that nobody has collected yet."""
    status = Path(f"/proc/{pid}/status")
    try:
        return "State:\tZ" not in status.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_duration__minutes() -> None:
    assert duration(59.4) == "59 s" and duration(243) == "4 min 3 s"
