"""Long jobs as tasks that resume: each runs a command that a user could type, in its own process and with a log.

`nnssl_benchmark` and `nnssl_demo` are lists of tasks. A task reads its progress from the disk, so that the same command
continues after an interruption, and several machines can share a list.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from nnssl.core.errors import UserError
from nnssl.core.lock import Holder, Lock

State = Literal["missing", "begun", "trained", "finished"]
_GOES_ON: dict[State, str] = {"begun": "--c", "trained": "--val"}  # of nnUNetv2_train; nnssl_pretrain has the first

_TAIL = 15  # last lines of a failed command that the error shows
_STAMP = re.compile(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d+: ")
_PATIENCE = 60  # seconds for an interrupted command to save its state

log = logging.getLogger("nnssl")


@dataclass(frozen=True)
class Task(ABC):
    """One command.

    Args:
        home: folder of the whole job.
        key: name of the task in records, and of its log.
        title: what it does, for the user.
        command: program and arguments to start it.
        variables: environment variables to type before the command.
        product: folder that only this command writes; removed before a new start.
        shown: pattern of the output lines that the user sees.
    """

    home: Path
    key: str
    title: str
    command: tuple[str, ...]
    variables: dict[str, str] = field(default_factory=dict)
    product: Path | None = None
    shown: re.Pattern[str] = re.compile("")

    @abstractmethod
    def state(self) -> State:
        """Progress: `begun` has a checkpoint to continue from, `trained` lacks its predictions."""

    @property
    def log(self) -> Path:
        """File with the whole output of the command."""
        return self.home / "logs" / f"{self.key}.log"

    @contextlib.contextmanager
    def alone(self) -> Iterator[Holder | None]:
        """Keep other jobs from this task; gives who has it already, or None where this job has it now."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        lock = Lock(self.log.with_suffix(".lock"), self.title)
        while not lock.try_acquire():
            if (holder := lock.holder()) is not None:  # None: given back in between
                yield holder
                return
        try:
            yield None
        finally:
            lock.release()

    def left(self) -> list[str]:
        """Program and arguments to start or continue."""
        goes_on = _GOES_ON.get(self.state())
        return [*self.command, goes_on] if goes_on else [*self.command]

    def line(self) -> str:
        """The command to start or continue, to paste into a shell."""
        settings = [f"{name}={shlex.quote(value)}" for name, value in self.variables.items()]
        return " ".join([*settings, shlex.join(self.left())])

    def environment(self) -> dict[str, str]:
        """All variables of the process; no busy waiting, unless the caller wants it.

        nnUNetv2_train on a CPU takes a thread a core, whatever OMP_NUM_THREADS says: the threads of two such trainings
        wait busily for each other, and both take several times as long.
        """
        return {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **self.variables}

    def note(self, seconds: float, code: int | None, anew: bool) -> float:
        """Note an attempt, and return the seconds of all attempts that count.

        Args:
            seconds: duration of this attempt.
            code: exit code; None if it was interrupted.
            anew: whether it started from nothing.
        """
        return seconds


AnyTask = TypeVar("AnyTask", bound=Task)
SOME_FAILED = "some trainings failed; fix the cause and run the same command again to continue:\n"


class TaskFailed(Exception):
    """A command failed or did not finish; the message has the last lines of its log."""

    def __init__(self, task: Task, code: int) -> None:
        super().__init__(f"{task.title} ended with exit code {code}; the last lines of {task.log}:\n"
                         f"{last_lines(task.log)}")  # fmt: skip
        self.code = code


def run_task(task: Task) -> None:
    """Log the command, and start or continue it.

    Raises:
        TaskFailed: the command failed, or the task is not finished afterwards.
        UserError: the command is not installed.
    """
    anew, code, began = task.state() == "missing", None, time.monotonic()
    command = task.left()
    if anew and task.product is not None:
        shutil.rmtree(task.product, ignore_errors=True)
    log.info(f"$ {task.line()}")
    try:
        code = run_command(command, task.environment(), task.log, task.shown)
    finally:
        seconds = task.note(time.monotonic() - began, code, anew)
    if code or task.state() != "finished":
        raise TaskFailed(task, code)
    log.info(f"  took {duration(seconds)}")


def run_tasks(
    tasks: Sequence[AnyTask], group: Callable[[AnyTask], str], done: Callable[[AnyTask], object]
) -> list[str]:
    """Run the tasks that are left and that no other job has; after a failure, skip the rest of its group.

    Args:
        tasks: in their order.
        group: name of what a task belongs to.
        done: called with every finished task, those of earlier calls too.

    Returns:
        What failed.
    """
    failed: dict[str, str] = {}
    for number, task in enumerate(tasks, start=1):
        if group(task) in failed:
            continue
        head = f"[{number} of {len(tasks)}] {task.title}"
        with task.alone() as holder:
            if holder is not None:
                log.info(f"{head}: {holder} trains it now, left to that job")
                continue
            if task.state() == "finished":
                log.info(f"{head}: finished before")
            else:
                log.info(head)
                try:
                    run_task(task)
                except TaskFailed as error:
                    failed[group(task)] = str(error)
                    log.warning(f"{error}\nskipping the other trainings of {group(task)}")
                    continue
            done(task)
    return list(failed.values())


def say_commands(tasks: Sequence[Task]) -> None:
    """Log the commands that are left."""
    left = [task for task in tasks if task.state() != "finished"]
    for task in left:
        log.info(f"# {task.title}\n{task.line()}")
    log.info(f"# {len(left)} of {len(tasks)} trainings are left; run without --dry_run to make the folders and train")


def run_command(
    command: Sequence[str],
    environment: Mapping[str, str],
    output: Path,
    shown: re.Pattern[str],
) -> int:
    """Run a command to its end; an interruption also ends its workers.

    Args:
        command: a program of this Python's environment, or one that the shell finds, and its arguments.
        environment: all of its variables.
        output: file to append its output to.
        shown: pattern of lines to log too, without nnU-Net's time stamps and numpy's type names.

    Returns:
        The exit code.

    Raises:
        UserError: the program is not installed.
    """
    arguments = [_program(command[0]), *command[1:]]
    output.parent.mkdir(parents=True, exist_ok=True)
    with open(output, "a") as file:
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
    """The end of a command's output."""
    return "\n".join(output.read_text(errors="replace").splitlines()[-_TAIL:])


def duration(seconds: float) -> str:
    """Seconds as text, such as `4 min 3 s`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _readable(line: str) -> str:
    return re.sub(r"np\.float\d+\(([^)]*)\)", r"\1", _STAMP.sub("", line)).rstrip()


def _stop(process: subprocess.Popen[str]) -> None:
    """Let the command save its state, then end it and its workers."""
    process.terminate()
    try:
        process.wait(_PATIENCE)  # for the process, not for the pipe, which workers may keep open
    except subprocess.TimeoutExpired:
        process.kill()
    finally:
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _program(name: str) -> str:
    """Find a command in this Python's environment, activated or not; else as the shell does."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        package = "nnunetv2" if name.startswith("nnUNetv2") else "."
        raise UserError(f"the command {name} is not installed; type: pip install {package}")
    return found
