from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from nnssl.core.errors import UserError
from tests.bad_inputs import names
from tests.bad_inputs.rows import Row, Said, all_rows, function, kind_of, run_row

TABLE = all_rows()
LEAVE_THEIR_FOLDER = {*(row.name for row in names.ROWS), *(row.name for row in TABLE if "a path" in row.name)}


@pytest.mark.parametrize("row", TABLE, ids=[row.name for row in TABLE])
def test_bad_input(row: Row, tmp_path: Path) -> None:
    if row.name not in LEAVE_THEIR_FOLDER:
        run_row(row, tmp_path)
        return
    before: dict[str, object] = {}

    def make(folder: Path) -> None:
        row.make(folder)
        before.update(_listing(tmp_path))

    (tmp_path / "row").mkdir()
    run_row(replace(row, make=make), tmp_path / "row")
    assert _listing(tmp_path) == before, "names must be looked at before anything is written or removed"


def _listing(folder: Path) -> dict[str, object]:
    """Every file and folder below one, with what it holds or points to."""
    found: dict[str, object] = {}
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(root) / name
            if path.is_symlink():
                found[str(path)] = os.readlink(path)
            else:
                found[str(path)] = path.read_bytes() if path.is_file() else None
    return found


def test_table__names_are_unique() -> None:
    assert len({row.name for row in TABLE}) == len(TABLE)


def _fail(_folder: Path) -> None:
    raise ValueError("no sentence")


def _refuse(_folder: Path) -> None:
    raise UserError("case_1 is cut")


def test_runner__tells_a_sentence_from_a_traceback(tmp_path: Path) -> None:
    """The table would be worth nothing if its runner let tracebacks, other codes or other words pass."""
    assert run_row(Row("x", lambda _: None, function(_refuse), ("case_1",), 1), tmp_path) == "sentence"
    for row in (
        Row("traceback", lambda _: None, function(_fail), (), 1),
        Row("other words", lambda _: None, function(_refuse), ("case_2",), 1),
        Row("other code", lambda _: None, function(_refuse), ("case_1",), 3),
        Row("accepted without intent", lambda _: None, function(lambda _: "fine"), (), 0),
    ):
        with pytest.raises(AssertionError, match=row.name):
            run_row(row, tmp_path)
    assert kind_of(Said(1, "Traceback (most recent call last): ...")) == "traceback"
