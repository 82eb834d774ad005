"""Running one command of the demo as a user would, in a process of its own."""

from __future__ import annotations

import logging
import os
import shutil
import time

from nnssl.child_process import duration, last_lines, run_command
from nnssl.demo.record import Record
from nnssl.demo.steps import Step
from nnssl.errors import UserError

log = logging.getLogger("nnssl")


def run_step(step: Step, record: Record) -> None:
    """Log the command and run it, unless it was finished before; what a command left that was cut off is removed.

    Raises:
        UserError: the command is not installed, or it failed; the message ends with its last lines.
    """
    if step.key in record.finished:
        log.info(f"$ {step.line()}\n  done before, in {duration(record.seconds[step.key])}")
        return
    goes_on = step.continues is not None and step.continues.is_file()
    command = (*step.command, "--c") if goes_on else step.command
    if step.product is not None and not goes_on:
        shutil.rmtree(step.product, ignore_errors=True)
    log.info(f"$ {step.line(command)}")
    output = record.home / "logs" / f"{step.key}.log"
    began = time.monotonic()
    try:
        code = run_command(command, _environment(step), output, step.shown)
    finally:
        record.spend(step.key, time.monotonic() - began, anew=not goes_on)
    if code:
        raise UserError(f"{command[0]} ended with exit code {code}; once that is mended, the same nnssl_demo command "
                        f"goes on from here. The last lines of {output}:\n{last_lines(output)}")  # fmt: skip
    record.finish(step.key)
    log.info(f"  took {duration(record.seconds[step.key])}")


def _environment(step: Step) -> dict[str, str]:
    """The caller's, without what would lead a command elsewhere, and with no more workers than there are cores."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith("nnssl_")}
    workers = str(min(4, os.cpu_count() or 1))
    return {**mine, "nnUNet_n_proc_DA": workers, "nnUNet_def_n_proc": workers, "nnUNet_compile": "f",
            **step.folders.environment(), **step.variables}  # fmt: skip
