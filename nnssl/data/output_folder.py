"""The folder that a command writes to, looked at before it begins to work."""

from __future__ import annotations

import os
from pathlib import Path

from nnssl.errors import UserError


def check_output_folder(folder: Path) -> None:
    """Make sure that a folder can be written to, or be made, without making it.

    Raises:
        UserError: it lies in a folder without permission, or it or one above it is a file.
    """
    whole = folder.resolve()
    there = next(path for path in (whole, *whole.parents) if os.path.exists(path))
    if not there.is_dir():
        raise UserError(f"{there} is a file; -o takes a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"the folder {there} cannot be written to; choose another one with -o")
