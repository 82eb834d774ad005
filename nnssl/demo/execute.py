"""Running one command of the demo as a user would, in a process of its own."""

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
from collections.abc import Sequence
from pathlib import Path

from nnssl.demo.record import Record
from nnssl.demo.steps import Step
from nnssl.errors import UserError

_TAIL = 15  # lines of a failed command that are shown
_STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: ")
_PATIENCE = 60  # seconds in which an interrupted command may save what it has

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
    output.parent.mkdir(exist_ok=True)
    began = time.monotonic()
    try:
        code = _execute(command, step, output)
    finally:
        record.spend(step.key, time.monotonic() - began, anew=not goes_on)
    if code:
        tail = "\n".join(output.read_text(errors="replace").splitlines()[-_TAIL:])
        raise UserError(f"{command[0]} ended with exit code {code}; once that is mended, the same nnssl_demo command "
                        f"goes on from here. The last lines of {output}:\n{tail}")  # fmt: skip
    record.finish(step.key)
    log.info(f"  took {duration(record.seconds[step.key])}")


def duration(seconds: float) -> str:
    """Such as `4 min 3 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _execute(command: Sequence[str], step: Step, output: Path) -> int:
    """Keep all that the command says in a file, and pass on what a reader should see; its exit code."""
    arguments = [_program(command[0]), *command[1:]]
    with open(output, "w") as file:
        process = subprocess.Popen(
            arguments, env=_environment(step), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            for line in process.stdout:
                file.write(line)
                file.flush()
                if step.shown.search(line):
                    log.info("  " + _readable(line))
            return process.wait()
        except BaseException:
            _stop(process)
            raise


def _readable(line: str) -> str:
    """Without nnU-Net's time stamp and numpy's type names."""
    return re.sub(r"np\.float\d+\(([^)]*)\)", r"\1", _STAMP.sub("", line)).rstrip()


def _stop(process: subprocess.Popen[str]) -> None:
    """Let the command save what it has; its workers must not outlive the demo."""
    process.terminate()
    try:
        process.wait(_PATIENCE)  # not for the pipe's end: workers may hold it open
    except subprocess.TimeoutExpired:
        process.kill()
    finally:
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _environment(step: Step) -> dict[str, str]:
    """The caller's, without what would lead a command elsewhere, and with no more workers than there are cores."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith("nnssl_")}
    workers = str(min(4, os.cpu_count() or 1))
    return {**mine, "nnUNet_n_proc_DA": workers, "nnUNet_def_n_proc": workers, "nnUNet_compile": "f",
            "PYTHONUNBUFFERED": "1", **step.folders.environment(), **step.variables}  # fmt: skip


def _program(name: str) -> str:
    """A command of this Python's environment, activated or not; else whatever the shell would find."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise UserError(f"the command {name} is not installed; type: pip install .")
    return found
