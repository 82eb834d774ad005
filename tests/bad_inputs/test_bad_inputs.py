from __future__ import annotations

from pathlib import Path

import pytest

from nnssl.core.errors import UserError
from tests.bad_inputs.rows import Row, Said, all_rows, function, kind_of, run_row

TABLE = all_rows()


@pytest.mark.parametrize("row", TABLE, ids=[row.name for row in TABLE])
def test_bad_input(row: Row, tmp_path: Path) -> None:
    run_row(row, tmp_path)


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
