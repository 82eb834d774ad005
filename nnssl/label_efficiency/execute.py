"""Running one training in a process of its own, with a log."""

from __future__ import annotations

import logging
import os
import re
import time

from nnssl.child_process import duration, last_lines, run_command
from nnssl.label_efficiency.tasks import Task

_SHOWN = re.compile(r"Backbone from|trainable parameters|Mean Validation Dice")

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
    began = time.monotonic()
    code = run_command(task.command(), {**os.environ, **task.variables()}, file, _SHOWN, "a")
    if code or task.state() != "finished":
        raise TrainingFailed(f"{task.title()} ended with exit code {code}; the last lines of {file}:\n"
                             f"{last_lines(file)}")  # fmt: skip
    log.info(f"  took {duration(time.monotonic() - began)}")
