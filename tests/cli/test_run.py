from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time

import pytest

from nnssl.cli.run import run
from nnssl.core.errors import UserError
from nnssl.core.signals import Interrupted


def _raising(error: BaseException) -> object:
    def command(_argv: list[str] | None) -> int | None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("type this"), 1, "error: type this\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (OSError(errno.ENOSPC, "full", "/x"), 1, "error: no space left to write /x "),
        (FileNotFoundError(errno.ENOENT, "gone", "/x"), 1, "error: /x is missing"),
        (MemoryError(), 1, "error: not enough memory"),
    ],
)
def test_run__one_line_and_a_code(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(_raising(error), [], again="type this")  # type: ignore[arg-type]
    assert caught.value.code == code
    line = capsys.readouterr().err
    assert line.startswith(said) and line.count("\n") == 1
    assert "type this" in line or code == 130


def test_run__a_signal_is_code_75_and_says_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    def command(_argv: list[str] | None) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    for ending in (command, _raising(Interrupted("saved; type this"))):
        with pytest.raises(SystemExit) as caught:
            run(ending, [], again="type this")  # type: ignore[arg-type]
        assert caught.value.code == 75
        said = capsys.readouterr()
        assert "type this" in said.out and said.err == ""


def test_run__a_reader_that_has_gone_is_no_error() -> None:
    code = ("from nnssl.cli.run import run\n"
            "run(lambda argv: [print('x' * 1000, flush=True) for _ in range(1000)] and 0, [])")  # fmt: skip
    shown = subprocess.run(["bash", "-c", f'"{sys.executable}" -c "$1" | head -c 10', "-", code], capture_output=True,
                           text=True, check=False)  # fmt: skip
    assert shown.stdout == "x" * 10 and shown.stderr == ""


def test_run__other_errors_are_bugs_and_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run(_raising(ZeroDivisionError()), [])  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        run(_raising(FileNotFoundError(errno.ENOENT, "gone")), [])  # type: ignore[arg-type]


def test_run__messages_and_exit_code_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    def command(argv: list[str] | None) -> int | None:
        logging.getLogger("nnssl").info("plain")
        logging.getLogger("nnssl").warning("odd")
        return 3 if argv else None

    run(command, [])
    assert capsys.readouterr().out == "plain\nwarning: odd\n"
    with pytest.raises(SystemExit) as caught:
        run(command, ["x"])
    assert caught.value.code == 3


def test_run__only_the_first_process_of_a_launcher_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as caught:
        run(_raising(UserError("type this")), [])  # type: ignore[arg-type]
    said = capsys.readouterr()
    assert caught.value.code == 1 and said.out == said.err == ""
    with pytest.raises(SystemExit):  # a disk may be lost to one machine only
        run(_raising(OSError(errno.EIO, "lost", "/x")), [])  # type: ignore[arg-type]
    assert "process 1" in capsys.readouterr().err
