from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nnssl.core.files import WRITING, remove_leftovers, replace_file, replacing

KILLED = """
import os, sys
from pathlib import Path
from nnssl.core.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), 9)
"""


def test_replace_file__is_the_old_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "new" / "file.csv"
    replace_file(file, b"old")
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "no space")))
        with pytest.raises(OSError, match=r"No space.*file\.csv"):
            replace_file(file, b"new")
    assert file.read_bytes() == b"old" and list(file.parent.iterdir()) == [file]
    replace_file(file, b"new")
    assert file.read_bytes() == b"new"


def test_replacing__removes_what_a_killed_process_left_of_the_same_file(tmp_path: Path) -> None:
    file = tmp_path / "a [1].json"
    subprocess.run([sys.executable, "-c", KILLED, str(file)], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(WRITING)
    alive = left.with_name(left.name.replace(left.name.split(".")[-2], str(os.getppid())))
    alive.touch()  # of a process that runs
    with replacing(file) as temporary:
        temporary.write_text("whole")
    assert {f.name for f in tmp_path.iterdir()} == {file.name, alive.name}
    remove_leftovers(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == [file.name]


def test_replacing__lists_a_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[Path] = []
    scandir = os.scandir
    monkeypatch.setattr("os.scandir", lambda folder: listed.append(folder) or scandir(folder))  # type: ignore[func-returns-value]
    for name in ("a", "b", "a"):
        replace_file(tmp_path / name, b"x")
    assert listed == [tmp_path]


def test_replacing__keeps_the_name_of_another_file_in_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "copy") as temporary:
        shutil.copy2(tmp_path / "source", temporary)
    assert caught.value.filename == str(tmp_path / "source") or caught.value.filename == tmp_path / "source"


def test_replacing__a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, replacing(tmp_path / "gone" / "file") as temporary:
        temporary.write_text("x")
    assert caught.value.filename == str(tmp_path / "gone" / "file")
