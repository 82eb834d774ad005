from __future__ import annotations

from pathlib import Path

import pytest

from nnssl.core.errors import UserError
from nnssl.demo.steps import Record

SETTINGS = {"method": "vox2vec", "device": "cpu"}


def test_record__remembers_finished_steps(tmp_path: Path) -> None:
    record = Record.open(tmp_path / "demo", SETTINGS)
    record.note("plan", 1.234, anew=True, finished=False)
    assert Record.open(tmp_path / "demo", SETTINGS).finished == []
    record.note("plan", 0, anew=False, finished=True)
    again = Record.open(tmp_path / "demo", SETTINGS)
    assert again.seconds == {"plan": 1.2} and again.finished == ["plan"]


def test_note__attempts_that_were_continued_add_up(tmp_path: Path) -> None:
    record = Record.open(tmp_path, SETTINGS)
    record.note("train", 2, anew=True, finished=False)
    record.note("train", 3, anew=False, finished=False)
    assert record.seconds == {"train": 5}
    record.note("train", 4, anew=True, finished=False)
    assert record.seconds == {"train": 4}


def test_record__other_settings_are_refused(tmp_path: Path) -> None:
    Record.open(tmp_path, SETTINGS)
    with pytest.raises(
        UserError, match=r"other settings \(method vox2vec, device cpu\); choose another folder with -o"
    ):
        Record.open(tmp_path, {**SETTINGS, "device": "cuda"})


def test_record__a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("")
    with pytest.raises(UserError, match="something else than a demo"):
        Record.open(tmp_path, SETTINGS)
    with pytest.raises(UserError, match="something else than a demo"):
        Record.open(tmp_path / "thesis.txt", SETTINGS)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_record__damaged(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        Record.open(tmp_path, SETTINGS)
