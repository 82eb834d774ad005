"""SIGTERM and SIGUSR1, which clusters send before they kill: announced at once, obeyed as soon as nothing is lost.

The first one ends a run after its step, with everything saved, and a command with nothing to save soon. A second
SIGTERM ends the process and its children within two seconds. A thread listens, so that long calls of C code do not
delay this: Python runs signal handlers only between its own instructions.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

EXIT_INTERRUPTED = 75  # EX_TEMPFAIL of sysexits.h: run again, a pretraining with --c
# A process gets the signal of its process group twice if its launcher passes its own one on.
_SAME_S = 1.0
_LAST_S = 1.0  # for the last words of a process that ends at once
_NUMBERS: tuple[signal.Signals, ...] = () if os.name == "nt" else (signal.SIGTERM, signal.SIGUSR1)

log = logging.getLogger("nnssl")


class Interrupted(Exception):
    """A signal ended the run after a step; everything is saved and `--c` goes on."""


class Stopped(BaseException):
    """A signal ended a command that had nothing to save. Not an `Exception`, which code might swallow."""


class Listener:
    """Context in which this process listens to the signals; the former handlers come back at its end.

    Does nothing outside the main thread, the only one in which Python handles signals, and on Windows.

    Args:
        of_command: whether the process is one of our commands: a signal raises `Stopped` unless a `StopSignal` is
            open, and a second SIGTERM ends the process. Else a second one does what it did before.
        again: what the user can type then, as the end of a sentence.
        to_the_end: whether the process ends with the context; a second SIGTERM still counts until then.
    """

    def __init__(self, of_command: bool, again: str = "run the same line again", to_the_end: bool = False) -> None:
        self.of_command, self.again, self.to_the_end = of_command, again, to_the_end
        self.saving: list[StopSignal] = []
        self.received, self.second, self.ending = False, False, False
        self._first: float | None = None  # when SIGTERM came first
        self._before: dict[int, Any] = {}
        self._pipe: tuple[socket.socket, socket.socket] | None = None
        self._fd_before = -1
        self._outer: Listener | None = None
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Listener:
        global _listener
        if _NUMBERS and threading.current_thread() is threading.main_thread():
            _hook_forks()
            ear, mouth = self._pipe = socket.socketpair()
            mouth.setblocking(False)
            self._fd_before = signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
            self._start(self._hear, ear)
            self._outer, _listener = _listener, self
            self._before = {number: signal.signal(number, self._handle) for number in _NUMBERS}
        return self

    def __exit__(self, *_: object) -> None:
        global _listener
        if self._pipe is None:
            return
        ear, mouth = self._pipe
        with contextlib.suppress(OSError):
            mouth.send(b"\0")  # no signal has this number: it ends the thread
        for thread in self._threads:  # the first one adds to them
            thread.join(_LAST_S)
        if self.to_the_end:
            self.ending = True
            self._start(self._hear, ear)
            return
        signal.set_wakeup_fd(self._fd_before)
        self._let_go()
        ear.close()
        mouth.close()
        _listener = self._outer

    def check(self) -> None:
        """Raise `Stopped` if a signal has come; code may have swallowed the first one."""
        if self.received and self.of_command:
            raise Stopped(f"stopped; what is done is kept: {self.again}")

    def end_pipe_of_child(self) -> None:
        """Close the pipe in a forked process, whose signals do not concern this one."""
        if self._pipe is not None:
            signal.set_wakeup_fd(-1)
            for end in self._pipe:
                end.close()

    def _start(self, target: Callable[[Any], None], argument: Any) -> None:
        self._threads.append(threading.Thread(target=target, args=(argument,), daemon=True))
        self._threads[-1].start()

    def _let_go(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Between two instructions of the main thread."""
        if self.ending:
            return
        first, self.received = not self.received, True
        if self.second:
            if not self.of_command:  # a program of the user, who has other plans for it
                self._let_go()
                os.kill(os.getpid(), number)
            return  # else `_hear` is ending the process and its children
        for context in self.saving:
            context.forward(number)
        if first and not self.saving:
            self.check()

    def _hear(self, ear: socket.socket) -> None:
        """At once, in a thread of its own."""
        said: set[int] = set()
        while number := ear.recv(1)[0]:
            if signal.getsignal(number) != self._handle:  # another signal, or another handler by now
                continue
            # here and not in `_handle`, which may run only after a long step; and before the first one is announced,
            # so that one sent after a look at that line is never taken for the same
            is_second = self._is_second(number)
            if number not in said and not self.ending:
                said.add(number)
                # the reader of our output may be slow, and this thread must go on listening
                self._start(self._announce, number)
            if is_second and not self.second:
                self.second = True
                if self.of_command:
                    _end_at_once()
                signal.pthread_kill(threading.main_thread().ident or 0, number)  # calls `_handle` once more

    def _is_second(self, number: int) -> bool:
        """Tell whether a SIGTERM is a second one, and note the first."""
        if number != signal.SIGTERM:
            return False
        now = time.monotonic()
        if self._first is None:
            self._first = now
        return now - self._first > _SAME_S

    def _announce(self, number: int) -> None:
        if multiprocessing.parent_process() is None:  # else the parent says it
            what = "the step under way is finished and saved first" if self.saving else "stopping"
            log.info(f"{signal.Signals(number).name} received: {what}; a second SIGTERM ends at once")


class StopSignal:
    """Context in which the signals only set `received`, so that a step can be finished and saved.

    Args:
        forward: told of every signal, to pass it on.

    Raises:
        Stopped: a signal has come before there was anything to save.
    """

    def __init__(self, forward: Callable[[int], object] | None = None) -> None:
        self.forward: Callable[[int], object] = forward or (lambda number: None)
        self._own = contextlib.ExitStack()
        self._listener: Listener | None = None

    @property
    def received(self) -> bool:
        """Whether a signal has come."""
        return self._listener is not None and self._listener.received

    def __enter__(self) -> StopSignal:
        listener = _listener or self._own.enter_context(Listener(of_command=False))
        listener.check()
        listener.saving.append(self)
        self._listener = listener
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._listener is not None:
            self._listener.saving.remove(self)
        self._own.close()


@contextlib.contextmanager
def listening(again: str, to_the_end: bool = False) -> Iterator[None]:
    """Listen while a command runs (see `Listener`); kill its children if a signal ends it."""
    with Listener(True, again, to_the_end):
        try:
            yield
        except Stopped:
            _kill_children()
            raise


def stop_if_told() -> None:
    """Raise `Stopped` if a signal has come that a command must obey."""
    if _listener is not None and not _listener.saving:
        _listener.check()


def ignore_signals() -> None:
    """For children: a signal to the whole process group is obeyed by the parent, which ends them."""
    for number in _NUMBERS:
        signal.signal(number, signal.SIG_IGN)


def die_with_parent() -> None:
    """Let the system kill this process with the thread that started it; only Linux can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


_listener: Listener | None = None
_blocked: list[set[Any]] = []  # what the thread that forks had blocked before


@functools.cache
def _hook_forks() -> None:
    """A forked process must not write its signals into our pipe, not even between the fork and its first line."""
    os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=_forget)


def _block() -> None:
    _blocked.append(signal.pthread_sigmask(signal.SIG_BLOCK, _NUMBERS))


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _blocked.pop())


def _forget() -> None:
    global _listener
    if _listener is not None:
        _listener.end_pipe_of_child()
        ignore_signals()
        _listener = None
    _unblock()


def _kill_children() -> None:
    for child in multiprocessing.active_children():
        child.kill()


def _end_at_once() -> None:
    """End this process and its children; half-written files still have temporary names."""
    try:
        words = threading.Thread(target=_last_words, daemon=True)
        words.start()
        _kill_children()
        words.join(_LAST_S)  # an unread pipe must not block the end
    finally:  # the interpreter may be about to end, and refuse
        os._exit(EXIT_INTERRUPTED)


def _last_words() -> None:
    log.info("SIGTERM received again: ended at once; what was saved before is whole")
    for handler in log.handlers:
        handler.flush()
    sys.stdout.flush()
