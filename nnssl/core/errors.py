"""The errors that a user can mend, also where they end one of nnU-Net's own commands."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any


class UserError(Exception):
    """A mistake of the user: the message is one sentence that names the fix; commands print it and exit with code 1."""


class BadCase(Exception):
    """A volume cannot be used; the message is the short reason. The others go on."""


class DamagedFile(BadCase):
    """A file of a volume cannot be read, or does not hold what its header promises."""


_PROGRAMS = "nnUNetv2_"
_NO_PLANS = ("dataset.json", "dataset_fingerprint.json", "splits_final.json")  # in the folder of a dataset's plans
_RAISED = f"{UserError.__module__}.{UserError.__qualname__}: "
# where a traceback continues with an error that followed from another one
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
    """Sentence of the `UserError` that an error is, follows from, or carries from a process of torch's `spawn`.

    nnU-Net opens the plans of a training before it makes a trainer: missing plans get their sentence here.
    """
    while error is not None:
        if isinstance(error, UserError):
            return str(error)
        if isinstance(error, FileNotFoundError) and (sentence := _missing_plans(error)) is not None:
            return sentence
        if type(error).__name__ == "ProcessRaisedException" and _RAISED in str(error):  # nothing but its traceback
            text = str(error).split(_RAISED, 1)[1]
            return min((text.split(joint, 1)[0] for joint in _JOINTS), key=len).strip()
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return None


def _missing_plans(error: FileNotFoundError) -> str | None:
    """What to type for plans that are not in a dataset's folder of nnUNet_preprocessed; None for another file."""
    file, home = Path(str(error.filename)), os.environ.get("nnUNet_preprocessed")
    dataset = file.parent.name
    if not home or file.parent.parent != Path(home) or file.suffix != ".json" or file.name in _NO_PLANS:
        return None
    number = dataset.removeprefix("Dataset").split("_")[0].lstrip("0")
    return (f"{dataset} has no plans {file.stem}; type nnUNetv2_plan_and_preprocess -d {number} for nnU-Net's own, or "
            f"name others with -p (nnssl_transfer makes some)")  # fmt: skip


def _show(
    before: Callable[..., Any], kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    sentence = sentence_of(error)
    if sentence is None:
        before(kind, error, trace)
    else:
        print(f"error: {sentence}", file=sys.stderr)
        threading.excepthook = lambda _: None  # nnU-Net's threads that lose their workers now
