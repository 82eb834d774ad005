"""A mistake that is met inside of nnU-Net's commands, which know nothing of `UserError`, ends in its sentence too."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

from nnssl.core.errors import UserError

_PROGRAMS = "nnUNetv2_"
_RAISED = f"{UserError.__module__}.{UserError.__qualname__}: "
# where a traceback goes on with an error that followed from another one
_JOINTS = ("\n\nThe above exception was", "\n\nDuring handling of the above")


def speak_in_nnunet_commands() -> None:
    """In a process of one of nnU-Net's commands: print the sentence of an uncaught `UserError` and no traceback.

    Other errors are shown as before, and other programs are left alone.
    """
    program = os.path.basename(sys.argv[0]) if getattr(sys, "argv", None) else ""
    before = sys.excepthook
    if program.startswith(_PROGRAMS) and getattr(before, "func", None) is not _show:
        sys.excepthook = partial(_show, before)


def sentence_of(error: BaseException | None) -> str | None:
    """Sentence of the `UserError` that an error is, follows from, or brings from a process of torch's `spawn`."""
    while error is not None:
        if isinstance(error, UserError):
            return str(error)
        if type(error).__name__ == "ProcessRaisedException" and _RAISED in str(error):  # nothing but its traceback
            text = str(error).split(_RAISED, 1)[1]
            return min((text.split(joint, 1)[0] for joint in _JOINTS), key=len).strip()
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def _show(
    before: Callable[..., Any], kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    sentence = sentence_of(error)
    if sentence is None:
        before(kind, error, trace)
    else:
        print(f"error: {sentence}", file=sys.stderr)
        threading.excepthook = lambda _: None  # nnU-Net's threads that lose their workers now
