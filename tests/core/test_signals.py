from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from nnssl.core import signals
from nnssl.core.signals import EXIT_INTERRUPTED, Stopped, StopSignal, listening, stop_if_told

LONG_STEP = """
import ctypes, multiprocessing, sys, time
from nnssl.cli.run import run
from nnssl.core.signals import StopSignal

def command(argv):
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    child.start()
    with StopSignal():
        print(child.pid, flush=True)
        while True:  # C code: Python's handlers must wait
            ctypes.CDLL(None).usleep(600_000_000)

run(command, [])
"""


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.05)


def test_listening__a_signal_ends_a_command_that_has_nothing_to_save(caplog: pytest.LogCaptureFixture) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    for number in (signal.SIGTERM, signal.SIGUSR1):
        with caplog.at_level(logging.INFO), pytest.raises(Stopped, match="type this"), listening("type this"):
            try:
                send(number)
            except Exception:
                pytest.fail("code that swallows errors must not swallow it")
        assert f"{signal.Signals(number).name} received: stopping" in caplog.text
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


def test_listening__swallowed_by_other_code_it_is_raised_at_the_next_case() -> None:
    with listening("type this"):
        with contextlib.suppress(BaseException):
            send(signal.SIGTERM)
        with pytest.raises(Stopped):
            stop_if_told()
        with pytest.raises(Stopped), StopSignal():
            pytest.fail("a run must not begin")


def test_stop_signal__a_step_is_finished(caplog: pytest.LogCaptureFixture) -> None:
    passed_on: list[int] = []
    with caplog.at_level(logging.INFO), listening("x"), StopSignal(passed_on.append) as told:
        stop_if_told()
        assert not told.received
        send(signal.SIGUSR1)
        send(signal.SIGTERM)  # the same request once more, as clusters do it
        send(signal.SIGTERM)  # and passed on by a launcher
        assert told.received
        stop_if_told()  # saves first
    assert passed_on == [signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM]
    assert caplog.text.count("received") == 2


def test_stop_signal__in_a_program_of_the_user_a_second_one_is_the_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "_SAME_S", 0.0)
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with StopSignal() as told:
            send(signal.SIGTERM)
            assert told.received and not seen
            send(signal.SIGTERM)
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_stop_signal__a_first_one_that_is_heard_after_a_long_step_is_no_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(signals, "_SAME_S", 0.05)
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with StopSignal() as told:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
            hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000)  # C code: Python's handlers must wait
            assert told.received and not seen
    finally:
        signal.signal(signal.SIGTERM, before)


def test_listener__a_second_one_never_leaves_a_command_to_the_systems_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system would end the process before its children are killed."""
    killed: list[int] = []
    with signals.Listener(of_command=True) as listener, StopSignal():
        monkeypatch.setattr(os, "kill", lambda process, number: killed.append(number))
        listener.second = True  # the thread has set it, and ends the process next
        signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == listener._handle and not killed


def test_stop_signal__in_another_thread_there_is_nothing_to_hear() -> None:
    told: list[bool] = []

    def run() -> None:
        with StopSignal() as stop:
            told.append(stop.received)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert told == [False]


def test_listening__signals_of_a_forked_child_are_its_own() -> None:
    with listening("x"), StopSignal() as told:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        time.sleep(0.1)
        assert not told.received


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_listening__in_a_long_step_said_at_once_and_a_second_one_ends_it() -> None:
    process = subprocess.Popen([sys.executable, "-c", LONG_STEP], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    time.sleep(0.3)
    process.terminate()
    assert "SIGTERM received: the step" in process.stdout.readline()  # while the step goes on
    time.sleep(signals._SAME_S + 0.1)
    process.terminate()
    said = process.communicate(timeout=120)[0]  # the step and the child would take 600 s
    assert process.returncode == EXIT_INTERRUPTED
    assert "ended at once" in said
    until = time.monotonic() + 60
    while _goes_on(child):  # a killed process needs a moment
        assert time.monotonic() < until
        time.sleep(0.02)


def _goes_on(process: int) -> bool:
    """Whether it exists and is more than an entry that nobody has collected yet."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
