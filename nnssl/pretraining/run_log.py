"""`pretraining_log.txt`: all that a pretraining says, from its first word on, once its folder may be written to."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from logging.handlers import MemoryHandler
from pathlib import Path

from nnssl.core.errors import UserError
from nnssl.core.signals import Interrupted, Stopped
from nnssl.core.system import name_file, why

LOG_FILE = "pretraining_log.txt"
CONTINUE = "continue with --c"

log = logging.getLogger("nnssl")


class _LogFile(logging.FileHandler):
    """A run goes on where its log cannot be written; the terminal has it too."""

    told = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self.told:
            self.told = True
            print(f"warning: the log misses lines: {why(name_file(error, Path(self.baseFilename)))}", file=sys.stderr)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what the disk did not take
            super().close()


class _RunLog(MemoryHandler):
    """Keeps the lines until `open`, and writes every later one at once."""

    def __init__(self) -> None:
        super().__init__(sys.maxsize, flushLevel=sys.maxsize, flushOnClose=False)

    def open(self, folder: Path) -> None:
        file = _LogFile(folder / LOG_FILE)
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self.setTarget(file)
        self.capacity = 0
        self.flush()

    def close(self) -> None:
        if self.target is not None:
            self.target.close()
        super().close()


@contextlib.contextmanager
def run_log() -> Iterator[None]:
    """Keep all lines, and what ends the run, for the file of `open_run_log`; a nested `run_log` does nothing.

    Nothing is written where that is not called: a request that is refused leaves no trace.
    """
    if _of_this_process() is not None:
        yield
        return
    handler = _RunLog()
    log.addHandler(handler)
    try:
        yield
    except BaseException as end:
        # the command says it on the terminal when this handler is gone
        if (record := _last_record(end)) is not None:
            handler.handle(record)
        raise
    finally:
        log.removeHandler(handler)
        handler.close()


def open_run_log(folder: Path) -> None:
    """Append the lines so far, and all that follow, to the log in the run's folder.

    Call it within `run_log`, in the process that writes to the folder; a second call does nothing.

    Raises:
        OSError: the file cannot be opened.
    """
    handler = _of_this_process()
    if handler is not None and handler.target is None:
        handler.open(folder)


def warnings_so_far() -> list[str]:
    """Warnings of this command until `open_run_log`, each once."""
    handler = _of_this_process()
    records = [] if handler is None else handler.buffer
    return list(dict.fromkeys(record.getMessage() for record in records if record.levelno == logging.WARNING))


def _of_this_process() -> _RunLog | None:
    return next((handler for handler in log.handlers if isinstance(handler, _RunLog)), None)


def _last_record(end: BaseException) -> logging.LogRecord | None:
    """What the log says of the end of a run; None where another process has said it."""
    level, trace = logging.ERROR, None
    if isinstance(end, SystemExit):
        return None
    if isinstance(end, Interrupted | Stopped):
        level, said = logging.INFO, str(end)
    elif isinstance(end, KeyboardInterrupt):
        level, said = logging.INFO, "interrupted"
    elif isinstance(end, UserError):
        said = str(end)
    elif (sentence := why(end, CONTINUE)) is not None:
        said = sentence
    else:  # a bug
        said, trace = f"{type(end).__name__}: {end}", (type(end), end, end.__traceback__)
    return logging.LogRecord(log.name, level, __file__, 0, said, None, trace)
