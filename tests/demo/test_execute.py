from __future__ import annotations

import logging
import os
import re
import sys
import time
from pathlib import Path

import pytest

from nnssl.child_process import duration
from nnssl.demo import execute
from nnssl.demo.execute import run_step
from nnssl.demo.record import Record
from nnssl.demo.steps import Folders, Step
from nnssl.errors import UserError


@pytest.fixture
def record(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Record:
    caplog.set_level(logging.INFO, "nnssl")
    return Record.open(tmp_path / "demo", {"method": "vox2vec"})


def _step(record: Record, code: str, **more: object) -> Step:
    return Step("key", "title", (Path(sys.executable).name, "-c", code), Folders(record.home), **more)  # type: ignore[arg-type]


def test_run_step__prints_the_command_keeps_its_output_and_is_done_once(
    record: Record, caplog: pytest.LogCaptureFixture
) -> None:
    step = _step(record, "print('loud'); print('quiet')", variables={"nnssl_x": "1"}, shown=re.compile("loud"))
    run_step(step, record)
    assert caplog.messages[0] == f"$ {step.line()}" and caplog.messages[1] == "  loud"
    assert not any("quiet" in message and not message.startswith("$") for message in caplog.messages)
    assert (record.home / "logs" / "key.log").read_text() == "loud\nquiet\n"
    assert record.finished == ["key"] and "key" in record.seconds
    run_step(_step(record, "raise SystemExit(1)"), record)  # not run again
    assert "done before" in caplog.messages[-1]


def test_run_step__environment(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnssl_checkpoint", "elsewhere.pth")
    monkeypatch.setenv("nnUNet_results", "/elsewhere")
    step = _step(record, "import os; print(os.environ['nnUNet_results'], os.environ.get('nnssl_checkpoint'),"
                         "os.environ['nnssl_num_epochs'])", variables={"nnssl_num_epochs": "3"})  # fmt: skip
    run_step(step, record)
    assert (record.home / "logs" / "key.log").read_text() == f"{record.home / 'nnUNet_results'} None 3\n"


def test_run_step__lines_of_nnunet_are_made_readable(record: Record, caplog: pytest.LogCaptureFixture) -> None:
    line = "2026-01-31 04:43:48.368424: Pseudo dice [np.float32(0.7641), np.float32(0.0)] "
    run_step(_step(record, f"print({line!r})", shown=re.compile("Pseudo")), record)
    assert caplog.messages[1] == "  Pseudo dice [0.7641, 0.0]"


def test_run_step__a_failure_shows_the_last_lines_and_is_not_done(record: Record) -> None:
    with pytest.raises(UserError, match=r"(?s)exit code 7.*goes on from here.*too few cases"):
        run_step(_step(record, "print('too few cases'); raise SystemExit(7)"), record)
    assert not record.finished


def test_run_step__removes_what_a_cut_off_command_left(record: Record) -> None:
    product = record.home / "model"
    product.mkdir()
    (product / "half").write_text("")
    run_step(_step(record, "", product=product), record)
    assert not product.exists()


def test_run_step__continues_from_a_checkpoint(record: Record, caplog: pytest.LogCaptureFixture) -> None:
    product = record.home / "run"
    product.mkdir()
    checkpoint = product / "checkpoint_latest.pth"
    checkpoint.write_text("")
    run_step(_step(record, "import sys; print(sys.argv[1:])", product=product, continues=checkpoint), record)
    assert checkpoint.exists() and caplog.messages[0].endswith(" --c") and caplog.messages[1] == "  ['--c']"


def test_run_step__unknown_command(record: Record) -> None:
    with pytest.raises(UserError, match=r"nnUNetv9_train is not installed"):
        run_step(Step("key", "title", ("nnUNetv9_train",), Folders(record.home)), record)


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups")
def test_run_step__interrupted_ends_the_command_and_its_workers(
    record: Record, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pids = tmp_path / "pids"
    worker = "import time; time.sleep(60)"
    code = "\n".join([
        "import os, subprocess, sys, time",
        f"worker = subprocess.Popen([sys.executable, '-c', {worker!r}], stdout=subprocess.DEVNULL)",
        f"open({str(pids)!r}, 'w').write(f'{{os.getpid()}} {{worker.pid}}')",
        "print('up', flush=True)",
        "time.sleep(60)",
    ])  # fmt: skip

    def interrupt(message: str) -> None:
        if message == "  up":
            raise KeyboardInterrupt

    monkeypatch.setattr(execute.log, "info", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_step(_step(record, code), record)
    assert not record.finished and "key" in record.seconds
    deadline = time.monotonic() + 10  # a killed process needs a moment
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
