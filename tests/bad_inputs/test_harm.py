from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.bad_inputs import json_files, names, own_files
from tests.bad_inputs.rows import Row, run_row

# Everything that holds a name that leaves its folder.
TABLE = [*names.ROWS, *(row for row in (*json_files.ROWS, *own_files.ROWS) if "a path" in row.name)]


def listing(folder: Path) -> dict[str, object]:
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


@pytest.mark.parametrize("row", TABLE, ids=[row.name for row in TABLE])
def test_nothing_is_written_or_removed(row: Row, tmp_path: Path) -> None:
    """Not outside of the package's folders, and not inside either: names are looked at first."""
    before: dict[str, object] = {}

    def make(folder: Path) -> None:
        row.make(folder)
        before.update(listing(tmp_path))

    (tmp_path / "row").mkdir()
    run_row(replace(row, make=make), tmp_path / "row")
    assert listing(tmp_path) == before
