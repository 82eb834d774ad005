"""Names from JSON files, checkpoints and command lines: which may become part of a path, and how texts show them."""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from nnssl.core.errors import UserError

Kind = Literal["case", "dataset", "plans", "configuration", "data_identifier", "fold", "trainer", "file"]

_CALLED: dict[Kind, str] = {
    "case": "a case",
    "dataset": "a dataset",
    "plans": "plans",
    "configuration": "a configuration",
    "data_identifier": "a folder of preprocessed volumes (data_identifier)",
    "fold": "a fold",
    "trainer": "a trainer",
    "file": "a file",
}
_FIX: dict[Kind, str] = {"fold": "give all or a number", "trainer": "give the name of its class"}
_ANY_FIX = "choose letters, digits, dots, hyphens and single underscores"
_LONGEST = 200  # bytes: endings such as _0000.nii.gz and the names of temporary files fit beside it into 255
# Files that nnU-Net and this package keep where plans are kept: NAME.json must be none of them, also where the file
# system does not tell capitals from small letters.
_STEMS = ("dataset", "dataset_fingerprint", "splits_final", "plans", "summary", "postprocessing", "nnssl_withdrawn")
_PLANS_ENDS = re.compile(r"_(left_out|unlabelled)(_part_\d+_of_\d+)?$", re.IGNORECASE)
_FOLDERS = ("gt_segmentations", "imagestr", "imagests", "imagesun", "labelstr", "labelsts")
_FOLDER_ENDS = re.compile(r"_(body|unlabelled|embeddings_[^_]*)$", re.IGNORECASE)
_FOLD = re.compile(r"0|[1-9][0-9]{0,8}")
_DATASET = re.compile(r"Dataset[0-9]{3,}_.+", re.DOTALL)


def why_not_a_name(name: Any, kind: Kind) -> str | None:
    """Why something cannot be a name of this kind, as the end of "it ..."; None where it can.

    Every name is one component of a path: text of at most 200 bytes in UTF-8 without separators of any system, control
    characters or a dot at its beginning. Dots, spaces, brackets and letters of any script are allowed.

    - case: does not end in _seg, which is how nnU-Net calls the label map of another case.
    - dataset: Dataset, three or more digits, underscore, name.
    - plans: no double underscore, at which nnU-Net splits names of folders; none of the JSON files beside plans.
    - configuration: no double underscore.
    - data_identifier: none of the folders that nnU-Net or this package keep beside it.
    - fold: all, or a number as nnU-Net writes it, without zeros before it.
    - trainer: name of a class, without a double underscore.
    - file: nothing more.
    """
    return _why_no_component(name) or _why_not_of_kind(name, kind)


def check_name(name: Any, kind: Kind, where: object = None) -> str:
    """The name, if it may become a part of a path.

    Args:
        name: of any type.
        kind: see `why_not_a_name`.
        where: the file or flag with the name, for the message.

    Raises:
        UserError: it may not, with the reason.
    """
    reason = why_not_a_name(name, kind)
    if reason is not None:
        source = "" if where is None else f"{where}: "
        raise UserError(f"{source}{shown(name)} cannot be the name of {_CALLED[kind]}: it {reason}; "
                        f"{_FIX.get(kind, _ANY_FIX)}")  # fmt: skip
    return str(name)


def shown(name: Any) -> str:
    """A name on one line of printable text, whatever it holds; at most 80 characters."""
    text = ascii(name) if not isinstance(name, str) or not name.isprintable() or not name else repr(name)
    return text if len(text) <= 80 else f"{text[:77]}..."


def nearest(name: str, known: Iterable[str], alike: float = 0.75) -> str | None:
    """The known name that a misspelt one was meant to be; None where none is at least so much `alike`, in [0, 1]."""
    close = difflib.get_close_matches(name, known, 1, alike)
    return close[0] if close else None


def _why_no_component(name: Any) -> str | None:
    if not isinstance(name, str):
        return f"is {type(name).__name__}, not text"
    if not name.strip():
        return "is empty"
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    if "/" in name or "\\" in name:
        return "contains a separator of folders"
    if any(ord(sign) < 32 or ord(sign) == 127 for sign in name):
        return "contains a control character"
    if name.startswith("."):
        return "begins with a dot"
    if size > _LONGEST:
        return f"has {size} bytes, more than {_LONGEST}"
    return None


def _why_not_of_kind(name: str, kind: Kind) -> str | None:
    if kind == "case" and name.endswith("_seg"):
        return "ends in _seg, as nnU-Net names label maps"
    if kind == "dataset" and not _DATASET.fullmatch(name):
        return "is not named like Dataset500_Thorax"
    if kind in ("plans", "configuration", "trainer") and "__" in name:
        return "contains __, at which nnU-Net splits names"
    if kind == "plans" and (name.casefold() in _STEMS or _PLANS_ENDS.search(name)):
        return f"would replace {name}.json, which is no plans"
    if kind == "data_identifier" and (name.casefold() in _FOLDERS or _FOLDER_ENDS.search(name)):
        return "is that of a folder with other content"
    if kind == "fold" and not (name == "all" or _FOLD.fullmatch(name)):
        return "is neither all nor a number"
    if kind == "trainer" and not name.isidentifier():
        return "is no name of a class"
    return None


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
    """A CSV file of `csv_cell`s whose lines end in a line feed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([csv_cell(value) for value in row] for row in (header, *rows))
    return text.getvalue()


def csv_cell(value: Any) -> Any:
    """The value, with an apostrophe before text (but numbers) that a spreadsheet would take for a formula."""
    if not isinstance(value, str) or not value.startswith(tuple(_FORMULA)):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value


def markdown(text: str) -> str:
    """For running text or the cell of a table in Markdown: no pipe, markup, HTML or new line of its own.

    Underscores inside words mean nothing and stay.
    """
    one_line = " ".join(text.splitlines())
    escaped = re.sub(r"([\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", one_line)
    return "".join(_HTML.get(sign, sign) for sign in escaped)


def latex(text: str) -> str:
    """For running text or the cell of a table in LaTeX."""
    return "".join(_TEX.get(sign, sign) for sign in " ".join(text.splitlines()))


def picture(text: str) -> str:
    """For matplotlib, which fails if text between two dollar signs is no formula."""
    return text.replace("$", r"\$")
