"""Running a command in a process of its own, as a user would, with a log."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from nnssl.errors import UserError

_TAIL = 15  # lines of a failed command that are shown
_STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: ")
_PATIENCE = 60  # seconds in which an interrupted command may save what it has

log = logging.getLogger("nnssl")


def run_command(
    command: Sequence[str],
    environment: Mapping[str, str],
    output: Path,
    shown: re.Pattern[str],
    mode: Literal["w", "a"] = "w",
) -> int:
    """Run a command to its end; one that is interrupted ends with its workers.

    Args:
        command: a program of this Python's environment, or one that the shell would find, and its arguments.
        environment: all of its variables.
        output: file that keeps all that it says.
        shown: what of that is logged too, without nnU-Net's time stamps and numpy's type names.
        mode: whether the file is begun anew or goes on.

    Returns:
        The exit code.

    Raises:
        UserError: the program is not installed.
    """
    arguments = [_program(command[0]), *command[1:]]
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(output, mode) as file:
        process = subprocess.Popen(
            arguments, env={**environment, "PYTHONUNBUFFERED": "1"}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                file.flush()
                if shown.search(line):
                    log.info("  " + _readable(line))
            return process.wait()
        except BaseException:
            _stop(process)
            raise


def last_lines(output: Path) -> str:
    """The end of what a command said."""
    return "\n".join(output.read_text(errors="replace").splitlines()[-_TAIL:])


def duration(seconds: float) -> str:
    """Such as `4 min 3 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _readable(line: str) -> str:
    return re.sub(r"np\.float\d+\(([^)]*)\)", r"\1", _STAMP.sub("", line)).rstrip()


def _stop(process: subprocess.Popen[str]) -> None:
    """Let the command save what it has; its workers must not outlive it."""
    process.terminate()
    try:
        process.wait(_PATIENCE)  # not for the pipe's end: workers may hold it open
    except subprocess.TimeoutExpired:
        process.kill()
    finally:
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _program(name: str) -> str:
    """A command of this Python's environment, activated or not; else whatever the shell would find."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        package = "nnunetv2" if name.startswith("nnUNetv2") else "."
        raise UserError(f"the command {name} is not installed; type: pip install {package}")
    return found
