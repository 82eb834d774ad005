"""Running one training in a process of its own, with a log."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from nnssl.demo.execute import duration
from nnssl.errors import UserError
from nnssl.label_efficiency.tasks import Task

_TAIL = 15  # lines of a failed command that are shown
_PATIENCE = 20  # seconds that an interrupted command has to end
_SHOWN = re.compile(r"Backbone from|trainable parameters|Mean Validation Dice")
_STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: ")

log = logging.getLogger("nnssl")


class TrainingFailed(Exception):
    """A training ended with an error; the message says how, where its log lies, and its last lines."""


def run_task(task: Task) -> None:
    """Run what is left of a training.

    Raises:
        TrainingFailed: the command failed, or left no predictions.
        UserError: nnUNetv2_train is not installed.
    """
    log.info(f"$ {task.line()}")
    file = task.workspace.home / "logs" / f"{task.key}.log"
    file.parent.mkdir(parents=True, exist_ok=True)
    command, began = task.command(), time.monotonic()
    code = _execute([_program(command[0]), *command[1:]], {**os.environ, **task.variables()}, file)
    if code or task.state() != "finished":
        tail = "\n".join(file.read_text(errors="replace").splitlines()[-_TAIL:])
        raise TrainingFailed(f"{task.title()} ended with exit code {code}; the last lines of {file}:\n{tail}")
    log.info(f"  took {duration(time.monotonic() - began)}")


def _execute(command: list[str], environment: dict[str, str], output: Path) -> int:
    with open(output, "a") as file:
        process = subprocess.Popen(
            command, env=environment | {"PYTHONUNBUFFERED": "1"}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                file.flush()
                if _SHOWN.search(line):
                    log.info("  " + _STAMP.sub("", line).rstrip())
            return process.wait()
        except BaseException:
            _stop(process)
            raise


def _stop(process: subprocess.Popen[str]) -> None:
    """End the command and its workers."""
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
        raise UserError(f"the command {name} is not installed; type: pip install nnunetv2")
    return found
