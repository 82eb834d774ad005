from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import BaseModel

from nnssl.core.errors import UserError
from nnssl.core.files import checked, read_json, write_json


class Inner(BaseModel):
    size: int


class Outer(BaseModel):
    name: str
    parts: dict[str, Inner]
    numbers: list[float] = []


GOOD = {"name": "x", "parts": {"a": {"size": 1}}, "more": True}


def test_a_file_that_fits_comes_back_unchanged(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", GOOD)
    assert read_json(tmp_path / "a.json", Outer) == GOOD
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_all_faults_are_named_with_their_place() -> None:
    with pytest.raises(UserError) as error:
        checked({"parts": {"a": {"size": "big"}, "b": {}}, "numbers": [1, "x"]}, Outer, "a.json", "mend a.json")
    message = str(error.value)
    for expected in ("a.json: ", "name: is missing", "parts.a.size", "'big'", "parts.b.size: is missing", "numbers[1]"):
        assert expected in message
    assert message.endswith("mend a.json") and "\n" not in message


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a": 1}}',
        b"{'a': 1}",
        b'{"a": 1, "b": {"c": 1, "c": 2}}',
    ],
    ids=range(9),
)
def test_what_is_no_json(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json.*mend it"):
        read_json(file)


def test_a_byte_order_mark_is_fine(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(GOOD), encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json", Outer) == GOOD


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for file in (tmp_path / "gone.json", tmp_path):
        with pytest.raises(UserError, match="restore it from there"):
            read_json(file, fix="restore it from there")


def test_many_faults_are_cut() -> None:
    with pytest.raises(UserError, match="and 12 more"):
        checked({"name": "x", "parts": {str(i): {} for i in range(32)}}, Outer, "a.json")


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", [1])
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", object())
    assert read_json(tmp_path / "a.json") == [1] and len(list(tmp_path.iterdir())) == 1


def test_a_key_that_is_there_twice_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"cases": {"case_1": 1, "case_2": 2, "case_1": 3}}')
    with pytest.raises(UserError, match="'case_1' twice"):
        read_json(tmp_path / "a.json")
