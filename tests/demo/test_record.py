from __future__ import annotations

from pathlib import Path

import pytest

from nnssl.demo.record import Record
from nnssl.errors import UserError

SETTINGS = {"method": "vox2vec", "device": "cpu"}


def test_record__remembers_finished_steps(tmp_path: Path) -> None:
    record = Record.open(tmp_path / "demo", SETTINGS)
    record.spend("plan", 1.234)
    assert Record.open(tmp_path / "demo", SETTINGS).finished == []
    record.finish("plan")
    again = Record.open(tmp_path / "demo", SETTINGS)
    assert again.seconds == {"plan": 1.2} and again.finished == ["plan"]


def test_spend__attempts_that_were_continued_add_up(tmp_path: Path) -> None:
    record = Record.open(tmp_path, SETTINGS)
    record.spend("train", 2, anew=True)
    record.spend("train", 3)
    assert record.seconds == {"train": 5}
    record.spend("train", 4, anew=True)
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
