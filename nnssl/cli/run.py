"""What all commands do alike: messages for people, exit codes for scripts."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable

from nnssl.errors import UserError

LEFT_OUT = 3  # exit code: done, but some volumes were left out
ALLOW_HELP = "take images of another modality than the pretraining's, such as CT after MR"


class _Formatter(logging.Formatter):
    """Plain lines; what is more than information says so."""

    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record)
        return message if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {message}"


def run(command: Callable[[list[str] | None], int | None], argv: list[str] | None) -> None:
    """Run a command with its arguments (None: those of the process) and leave the process with its exit code.

    A mistake of the user is one line `error: ...` on standard error and code 1; Ctrl-C is code 130. Of the processes
    that a launcher such as torchrun started, only the first one speaks.
    """
    logger = logging.getLogger("nnssl")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_Formatter())
    logger.addHandler(handler)
    level = logger.level
    speaks = os.environ.get("RANK", "0") == "0"
    if not speaks:
        logger.setLevel(logging.CRITICAL)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    try:
        code = command(argv)
    except UserError as error:
        if speaks:
            print(f"error: {error}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"error: no space left to write {error.filename or 'the output'}; make room and run it again",
              file=sys.stderr)  # fmt: skip
        code = 1
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    if code:
        sys.exit(code)
