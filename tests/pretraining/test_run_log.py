from __future__ import annotations

import logging
from pathlib import Path

import pytest

from nnssl.core.errors import UserError
from nnssl.core.signals import Interrupted
from nnssl.pretraining.run_log import LOG_FILE, open_run_log, run_log

log = logging.getLogger("nnssl")


@pytest.fixture(autouse=True)
def speaking(caplog: pytest.LogCaptureFixture) -> None:
    """As a command does."""
    caplog.set_level(logging.INFO, "nnssl")


def _lines(folder: Path) -> list[str]:
    """Level and text of the lines of the log."""
    return [line.split(" ", 2)[2] for line in (folder / LOG_FILE).read_text().splitlines()]


def test_run_log__holds_what_was_said_before_the_folder_was_open_and_appends(tmp_path: Path) -> None:
    with run_log():
        log.info("planning %d", 3)
        log.warning("odd")
        assert not list(tmp_path.iterdir())
        open_run_log(tmp_path)
        assert _lines(tmp_path) == ["INFO planning 3", "WARNING odd"]  # at once
        with run_log():  # the loop's, in the same process
            open_run_log(tmp_path)
            log.info("epoch")
        log.info("finished")
    log.info("of no run")
    with run_log():
        log.info("continued")
        open_run_log(tmp_path)
    assert [line.split()[-1] for line in _lines(tmp_path)] == ["3", "odd", "epoch", "finished", "continued"]


def test_run_log__a_refused_request_writes_nothing_and_what_ends_a_run_is_its_last_line(tmp_path: Path) -> None:
    before = list(log.handlers)
    with pytest.raises(UserError), run_log():
        log.info("planning")
        raise UserError("there is no such dataset")
    assert not list(tmp_path.iterdir())
    for error, said in (
        (UserError("mend it"), "ERROR mend it"),
        (Interrupted("stopped after step 3"), "INFO stopped after step 3"),
        (KeyboardInterrupt(), "INFO interrupted"),
        (PermissionError(13, "Permission denied", "/x/y"), "ERROR /x/y cannot be opened"),
        (ZeroDivisionError("a bug"), "ERROR ZeroDivisionError: a bug"),
    ):
        with pytest.raises(type(error)), run_log(), run_log():
            open_run_log(tmp_path)
            raise error
        text = (tmp_path / LOG_FILE).read_text()
        assert _lines(tmp_path)[0].startswith(said) and text.count(said) == 1
        assert ("Traceback" in text) == isinstance(error, ZeroDivisionError)
        (tmp_path / LOG_FILE).unlink()
    with pytest.raises(SystemExit), run_log():  # another process has said why
        open_run_log(tmp_path)
        raise SystemExit(1)
    assert (tmp_path / LOG_FILE).read_text() == ""
    assert log.handlers == before


def test_run_log__a_log_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / LOG_FILE).mkdir()
    with pytest.raises(IsADirectoryError, match=LOG_FILE), run_log():
        open_run_log(tmp_path)
