"""Names as text in tables: what means something to a spreadsheet, to Markdown, LaTeX or matplotlib becomes plain.

Labels, cases and methods are called what users like, and nobody who opens a table shall run what a name says.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

_FORMULA = "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20"  # with the wide forms, which some spreadsheets read as these
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_TEX = {sign: f"\\{sign}" for sign in "%_&#${}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "|": r"\textbar{}",  # these three print as other signs in LaTeX's first fonts
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def csv_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A whole CSV file, lines end in a line feed; cells as `csv_cell` makes them."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([csv_cell(value) for value in row] for row in (header, *rows))
    return text.getvalue()


def csv_cell(value: Any) -> Any:
    """The value; an apostrophe comes before text that a spreadsheet would take for a formula, unless it is a number."""
    if not isinstance(value, str) or not value.startswith(tuple(_FORMULA)):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def markdown(text: str) -> str:
    """For running text or the cell of a table in Markdown: no pipe, markup, HTML or new line of its own.

    Underscores inside of words mean nothing, and stay.
    """
    one_line = " ".join(text.splitlines())
    escaped = re.sub(r"([\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", one_line)
    return "".join(_HTML.get(sign, sign) for sign in escaped)


def latex(text: str) -> str:
    """For running text or the cell of a table in LaTeX."""
    return "".join(_TEX.get(sign, sign) for sign in " ".join(text.splitlines()))


def picture(text: str) -> str:
    """For matplotlib, which reads what is between two dollar signs as a formula and fails if it is none."""
    return text.replace("$", r"\$")
