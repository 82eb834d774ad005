"""`labels.csv` of a raw dataset: one row a case, one column a target."""

from __future__ import annotations

import csv
import io
import logging
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from nnssl.core.errors import UserError
from nnssl.core.names import check_name, shown

FILE = "labels.csv"
CASE, GROUP = "case", "group"  # columns that are no targets
Task = Literal["classification", "regression"]
_SEPARATORS = ",;\t"
_NAMED = 5  # cases that a sentence names
_LONGEST = 100  # bytes of a target, whose folder has the name of the plans too
_SHOWN = 20  # classes that the log counts
_LARGEST = 1e100  # its square is a float too
_NOTHING = ("nan", "na", "n/a", "#n/a", "<na>", "null")  # what other programs write into empty cells

log = logging.getLogger("nnssl")


@dataclass(frozen=True)
class Target:
    """What is to be predicted of each case.

    Args:
        name: of its column.
        cases: with a value, sorted.
        values: (N,) of them: numbers, or positions in `classes`.
        classes: names, sorted; none for regression.
        groups: (N,) of the cases, such as their patients; a case without one is a group of its own.
    """

    name: str
    cases: tuple[str, ...]
    values: NDArray[np.float64]
    classes: tuple[str, ...]
    groups: tuple[str, ...]

    @property
    def task(self) -> Task:
        """What the values ask for."""
        return "classification" if self.classes else "regression"

    def of(self, cases: Sequence[str]) -> NDArray[np.float64]:
        """(n,) values of some cases."""
        return self.values[self.places(cases)]

    def groups_of(self, cases: Sequence[str]) -> list[str]:
        """Groups of some cases."""
        return [self.groups[place] for place in self.places(cases)]

    def places(self, cases: Sequence[str]) -> list[int]:
        """Positions of some cases."""
        place = {case: number for number, case in enumerate(self.cases)}
        return [place[case] for case in cases]


def read_target(file: Path, images: Collection[str], name: str | None = None, task: Task | None = None) -> Target:
    """Read a column of `labels.csv`.

    Names are classes and numbers a regression; two different whole numbers, such as 0 and 1, are classes too. A case
    with an empty cell has no value and is not used.

    Args:
        file: with the columns `case`, one or more targets, and perhaps `group`; separated by commas, semicolons or
            tabs.
        images: names of the cases that have images.
        name: of the target; None where there is only one.
        task: in place of what the values say.

    Raises:
        UserError: the file is missing or damaged; there is no such target; a case is unknown or named twice; text
            stands among numbers; or all values are the same.
    """
    rows = _rows(file)
    header = list(rows[0][1])
    column = _column(header, name, file)
    _check_cases(rows, images, file)
    texts = {row[CASE]: row[column] for _, row in rows if row[column]}
    if not texts:
        raise UserError(f"{file}: the column {shown(column)} is empty; write a value for each case that has one")
    chosen = task or _task_of(list(texts.values()))
    lines = {row[CASE]: f"{file}, line {number}: {column} of {row[CASE]}" for number, row in rows}
    if strange := [case for case, text in texts.items() if text.casefold() in _NOTHING]:
        raise UserError(f"{lines[strange[0]]} is {shown(texts[strange[0]])}; leave the cell empty if it has no value, "
                        f"or write another word if that is a class")  # fmt: skip
    cases = tuple(sorted(texts))
    classes: tuple[str, ...] = ()
    if chosen == "classification":
        texts = _spelled_alike(texts)
        classes = tuple(sorted(set(texts.values()), key=_order))
        _check_capitals(classes, column, file)
        values = [float(classes.index(texts[case])) for case in cases]
        counts = [f"{shown(name)} {values.count(number)}" for number, name in enumerate(classes)]
        log.info(f"{column}, cases: {', '.join(counts[:_SHOWN])}{', ...' * (len(counts) > _SHOWN)}")
    else:
        values = [_number_in(texts[case], lines[case]) for case in cases]
    if len(set(values)) < 2:
        same = shown(texts[cases[0]])
        raise UserError(f"{file}: all {len(cases)} cases have the same {column}, {same}, and nothing can be told "
                        f"apart; add cases with another value, or choose another -target")  # fmt: skip
    of_case = {row[CASE]: row.get(GROUP, "") for _, row in rows}
    # a name that no group of the file can have, since cells are stripped
    groups = tuple(of_case[case] or f" {case}" for case in cases)
    if empty := len(rows) - len(cases):
        log.info(f"{empty} case{'s have' if empty > 1 else ' has'} no {column} and {'are' if empty > 1 else 'is'} not "
                 f"used")  # fmt: skip
    return Target(column, cases, np.array(values), classes, groups)


def _rows(file: Path) -> list[tuple[int, dict[str, str]]]:
    """Rows with the number of their lines; cells are stripped."""
    if not file.is_file():
        raise UserError(f"{file} is missing; write one line a case, such as: case,covid and below it case_001,yes")
    try:
        text = file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no text in UTF-8; save it as CSV (UTF-8)") from error
    first = text.strip().splitlines()[0] if text.strip() else ""
    separator = max(_SEPARATORS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cells)]
    except csv.Error as error:
        raise UserError(f"{file}, line {reader.line_num} is no CSV ({error}); save the table as CSV again") from error
    header = lines[0][1] if lines else []
    if CASE not in header:
        raise UserError(f"{file} has no column {CASE!r} in its first line (it has {', '.join(header) or 'none'}); name "
                        f"the column with the names of the cases {CASE}")  # fmt: skip
    if twice := sorted({column for column in header if header.count(column) > 1}):
        raise UserError(f"{file} has the column {shown(twice[0])} twice; rename one")
    for number, cells in lines[1:]:
        if len(cells) != len(header):
            raise UserError(f"{file}, line {number} has {len(cells)} cells and the first line {len(header)}; mend that "
                            f"line (quote text that holds {shown(separator)})")  # fmt: skip
    if len(lines) < 2:
        raise UserError(f"{file} has no case below its first line; write one line a case")
    return [(number, dict(zip(header, cells, strict=True))) for number, cells in lines[1:]]


def _column(header: Sequence[str], name: str | None, file: Path) -> str:
    targets = [column for column in header if column and column not in (CASE, GROUP)]
    if not targets:
        raise UserError(f"{file} has no target; add a column beside {CASE}, such as covid")
    if name is None and len(targets) > 1:
        raise UserError(f"{file} has {len(targets)} targets; choose one with -target: {', '.join(targets)}")
    column = targets[0] if name is None else name
    if column not in targets:
        raise UserError(f"{file} has no target {shown(column)}; choose one with -target: {', '.join(targets)}")
    if len(column.encode()) > _LONGEST:
        raise UserError(f"{file}: the target {shown(column)} has more than {_LONGEST} letters, too many for the name "
                        f"of a folder; give it a shorter name")  # fmt: skip
    return check_name(column, "file", f"the column of {file}")


def _check_cases(rows: Sequence[tuple[int, dict[str, str]]], images: Collection[str], file: Path) -> None:
    seen: dict[str, int] = {}
    for number, row in rows:
        case = row[CASE]
        if not case:
            raise UserError(f"{file}, line {number} names no case; write its name, or remove the line")
        if case in seen:
            raise UserError(f"{file} has the case {shown(case)} in the lines {seen[case]} and {number}; remove one")
        seen[case] = number
    if unknown := [case for case in seen if case not in images]:
        named = ", ".join(map(shown, unknown[:_NAMED])) + (", ..." if len(unknown) > _NAMED else "")
        raise UserError(f"{file}, line {seen[unknown[0]]}: {len(unknown)} of its cases have no image in imagesTr "
                        f"({named}); mend the names (case_001 for case_001_0000.nii.gz), or remove the "
                        f"lines")  # fmt: skip
    if missing := sorted(set(images) - seen.keys()):
        named = ", ".join(missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
        log.warning(f"{len(missing)} of {len(images)} images have no line in {file} and are left out: {named}")


def _task_of(texts: Sequence[str]) -> Task:
    numbers = [_exact(text) for text in texts]
    if all(number is None for number in numbers):
        return "classification"
    known = {number for number in numbers if number is not None}
    if None not in numbers and len(known) == 2 and all(number == number.to_integral_value() for number in known):
        return "classification"
    return "regression"


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _exact(text: str) -> Decimal | None:
    """A number with all its digits: long ones, such as identifiers, must not become the same float."""
    return None if _number(text) is None else Decimal(text)


def _number_in(text: str, where: str) -> float:
    value = _number(text)
    if value is None:
        raise UserError(f"{where} is {shown(text)}, among values that are numbers; write a number, leave the cell "
                        f"empty, or add -task classification if all are names")  # fmt: skip
    if abs(value) > _LARGEST:
        raise UserError(f"{where} is {shown(text)}, too large to compute with; write it in another unit")
    return value


def _spelled_alike(texts: dict[str, str]) -> dict[str, str]:
    """The same class for texts that are the same number, such as 1 and 1.0: the shortest of them."""
    spelled: dict[Decimal | str, str] = {}
    for text in sorted(set(texts.values()), key=lambda text: (len(text), text)):
        number = _exact(text)
        spelled.setdefault(text if number is None else number, text)
    numbers = {case: _exact(text) for case, text in texts.items()}
    return {case: spelled[text if (number := numbers[case]) is None else number] for case, text in texts.items()}


def _check_capitals(classes: Sequence[str], column: str, file: Path) -> None:
    """Refuse TRUE and true as two classes."""
    known: dict[str, str] = {}
    for name in classes:
        other = known.setdefault(name.casefold(), name)
        if other != name:
            raise UserError(f"{file}: {column} has the classes {shown(other)} and {shown(name)}, which differ in "
                            f"capitals only; write them alike, or give one another name")  # fmt: skip


def _order(text: str) -> tuple[float, str]:
    """Numbers by their size, then names."""
    value = _number(text)
    return (math.inf if value is None else value, text)
