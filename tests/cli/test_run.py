from __future__ import annotations

import errno
import logging

import pytest

from nnssl.cli.run import run
from nnssl.errors import UserError


def _raising(error: BaseException) -> object:
    def command(_argv: list[str] | None) -> int | None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("type this"), 1, "error: type this\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (OSError(errno.ENOSPC, "full", "/x"), 1, "error: no space left to write /x; make room and run it again\n"),
    ],
)
def test_run__one_line_and_a_code(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(_raising(error), [])  # type: ignore[arg-type]
    assert caught.value.code == code
    assert capsys.readouterr().err == said


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
