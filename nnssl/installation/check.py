"""What one look at the installation found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

INSTALL = "pip install .   (in a fresh clone of ours)"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Args:
        name: what it is, such as "nnUNet_raw".
        status: "ok"; "warn" where work is possible and a surprise too; "fail" where something will not work.
        message: what was found, in one line.
        fix: the line to type, or None where there is nothing to mend.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    message: str
    fix: str | None = None


def in_a_line(error: BaseException) -> str:
    """Kind and text of an error, such as "ImportError: no module named x"."""
    return " ".join(f"{type(error).__name__}: {error}".split())
