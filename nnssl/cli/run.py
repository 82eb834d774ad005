"""What all commands have in common: messages for people, exit codes for scripts."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nnssl.cli.flags import KEYBOARD
from nnssl.core.errors import UserError
from nnssl.core.signals import EXIT_INTERRUPTED, Interrupted, Stopped, listening
from nnssl.core.system import is_first_started, why

AGAIN = "run the same line again"


class _Formatter(logging.Formatter):
    """Plain lines; warnings and errors begin with their level."""

    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record)
        return message if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {message}"


class _Output(logging.StreamHandler):
    """Standard output; if its disk is full or its reader has gone, not every line reports that."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def entry(
    parser: Callable[[], argparse.ArgumentParser],
    command: Callable[[argparse.Namespace], int | None],
    again: str = AGAIN,
) -> Callable[..., None]:
    """Make a command's `main(argv=None)`, see `run`.

    Args:
        parser: makes the parser of the arguments.
        command: takes the parsed arguments. It imports what it needs itself, so that `--help` waits for neither torch
            nor nnU-Net.
        again: as in `run`.
    """

    def main(argv: list[str] | None = None) -> None:
        complete_if_asked(parser)
        run(lambda given: command(parser().parse_args(given)), argv, again)

    return main


def complete_if_asked(parser: Callable[[], argparse.ArgumentParser]) -> None:
    """Answer a shell that asks for completions, and end the process; else do nothing."""
    if "_ARGCOMPLETE" in os.environ:
        from nnssl.cli.completion import complete

        complete(parser())


def run(command: Callable[[list[str] | None], int | None], argv: list[str] | None, again: str = AGAIN) -> None:
    """Run a command with its arguments (None: those of the process) and leave the process with its exit code.

    A mistake of the user, or something that the system refuses, is one line `error: ...` on standard error and code
    1; Ctrl-C is code 130, SIGTERM and SIGUSR1 are code 75. Of the processes that a launcher such as torchrun started,
    only the first one prints.

    Args:
        command: takes the arguments, returns its exit code or None for 0.
        argv: the arguments.
        again: what the user types after an interruption, as the end of a sentence.
    """
    logger = logging.getLogger("nnssl")
    handler = _Output(sys.stdout)
    handler.setFormatter(_Formatter())
    logger.addHandler(handler)
    level = logger.level
    speaks = is_first_started()
    if not speaks:
        logger.setLevel(logging.CRITICAL)
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    try:
        with listening(again, to_the_end=argv is None):
            code = command(argv)
    except (Interrupted, Stopped) as end:
        logger.info(str(end))
        code = EXIT_INTERRUPTED
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = KEYBOARD
    except Exception as error:
        sentence = str(error) if isinstance(error, UserError) else why(error, again)
        if isinstance(error, BrokenPipeError):  # whoever read our output wants no more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        elif sentence is None:
            raise  # a bug
        elif speaks:
            print(f"error: {sentence}", file=sys.stderr)
        elif not isinstance(error, UserError):  # which all processes find; a disk may be lost to one machine only
            print(f"error in process {os.environ['RANK']}: {sentence}", file=sys.stderr)
        code = 1
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    if code:
        sys.exit(code)


@contextmanager
def resumable() -> Iterator[None]:
    """Around trainings that are processes of their own: SIGTERM ends the running one too, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        logging.getLogger("nnssl").info("the same command goes on with what is left to do")
        raise
