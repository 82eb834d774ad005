from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from nnssl.core import system as memory


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    memory.memory_limit.cache_clear()
    yield
    memory.memory_limit.cache_clear()


def test_memory_limit__is_at_most_what_is_installed() -> None:
    assert 1 << 28 < memory.memory_limit() <= memory._installed()


@pytest.mark.parametrize(
    ("line", "file"), [("0::/a/b", "a/memory.max"), ("4:cpu,memory:/a/b", "memory/a/memory.limit_in_bytes")]
)
def test_memory_limit__of_a_group_around_the_process(
    line: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text("123456789\n")
    inner = (tmp_path / file).parent / "b"
    inner.mkdir()
    (inner / Path(file).name).write_text("max\n")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "own")
    (tmp_path / "own").write_text(f"{line}\n1:name=systemd:/\n")
    assert memory.memory_limit() == 123456789
    (tmp_path / "own").unlink()
    memory.memory_limit.cache_clear()
    assert memory.memory_limit() > 123456789


def test_memory_limit__of_ulimit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (5_000_000, 6_000_000))
    assert memory.memory_limit() == 5_000_000


def test_gigabytes__for_people() -> None:
    assert [memory.gigabytes(n) for n in (1.5e9, 25.34e9, 1234e9)] == ["1.5 GB", "25.3 GB", "1,234 GB"]
