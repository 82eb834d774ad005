"""Calling nnU-Net's functions without what they print."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator

from nnssl.errors import UserError

logger = logging.getLogger("nnssl")


@contextlib.contextmanager
def quietly(if_it_fails: int = logging.DEBUG) -> Iterator[io.StringIO]:
    """Collect standard output, standard error and warnings of Python code, and yield the text collected so far.

    What was said goes to the log at level DEBUG, or at `if_it_fails` when the block raises anything but a UserError.
    """
    said = io.StringIO()
    level = logging.DEBUG
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("default")
            # the default hook would write to the stream that was standard error when it was set up
            warnings.showwarning = lambda message, *_args, **_kwargs: print(message, file=said)
            yield said
    except UserError:  # says itself what is wrong
        raise
    except BaseException:
        level = if_it_fails
        raise
    finally:
        if text := said.getvalue().strip():
            logger.log(level, "%s", text)


@contextlib.contextmanager
def itk_is_quiet() -> Iterator[None]:
    """Without the warnings that ITK writes to the process's standard error, past Python's."""
    import SimpleITK as sitk

    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)
