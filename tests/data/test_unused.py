from __future__ import annotations

from pathlib import Path

import pytest

from nnssl.core.errors import UserError
from nnssl.data.records import Record, Records
from nnssl.data.unused import read_withdrawn, unused_cases, write_withdrawn


def test_write_withdrawn__of_either_kind_and_gone_when_all_are_back(tmp_path: Path) -> None:
    write_withdrawn(tmp_path, [])
    assert not list(tmp_path.iterdir()) and read_withdrawn(tmp_path) == set()
    write_withdrawn(tmp_path, {"b", "a"})
    write_withdrawn(tmp_path, {"a"}, "imagesUn")
    assert (read_withdrawn(tmp_path), read_withdrawn(tmp_path, "imagesUn")) == ({"a", "b"}, {"a"})
    write_withdrawn(tmp_path, {"b"})
    write_withdrawn(tmp_path, [], "imagesUn")
    assert unused_cases(tmp_path / "data") == {"b": "its raw files are gone"}
    assert unused_cases(tmp_path / "data_unlabelled") == {}
    write_withdrawn(tmp_path, [])
    assert not list(tmp_path.iterdir())


def test_unused_cases__for_plans(tmp_path: Path) -> None:
    Records(tmp_path / "data").append(
        [Record("good", None, "p"), Record("old", None, "q"), Record("bad", None, "p", reason="2-D"), Record("?", None)]
    )
    assert unused_cases(tmp_path / "data", "p").keys() == {"old", "bad"}
    assert unused_cases(tmp_path / "data").keys() == {"bad"}


def test_read_withdrawn__damaged(tmp_path: Path) -> None:
    (tmp_path / "nnssl_withdrawn.json").write_text("{")
    with pytest.raises(UserError, match=r"nnssl_withdrawn\.json.*nnssl_plan_and_preprocess"):
        unused_cases(tmp_path / "data")
