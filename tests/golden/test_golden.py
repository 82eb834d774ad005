"""The package does what it did: every entry of the golden net is made again and compared with what was recorded.

A move inside the package that breaks the net's own imports is mended in `tests/golden/inside.py`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.golden.compare import differences
from tests.golden.entries import KINDS
from tests.golden.record import read, versions
from tests.golden.world import World

pytestmark = pytest.mark.rendered
_ENTRIES = [(kind, name) for kind in KINDS for name in KINDS[kind].names()]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("golden")
    yield World(root)
    shutil.rmtree(root)


@pytest.mark.parametrize(("kind", "name"), _ENTRIES, ids=[f"{kind}-{name}" for kind, name in _ENTRIES])
def test_golden(kind: str, name: str, world: World) -> None:
    recorded = read(kind)
    assert name in recorded, f"golden net: {kind} {name!r} is new; {_renew()}"
    _compare(recorded[name], KINDS[kind].record(world, name), f"{kind} {name!r}")


@pytest.mark.parametrize("kind", KINDS)
def test_golden__nothing_is_gone(kind: str) -> None:
    gone = sorted(set(read(kind)) - set(KINDS[kind].names()))
    assert not gone, f"golden net: of {kind}, {gone} are gone; {_renew()}"


def _compare(recorded: Any, now: Any, what: str) -> None:
    found = differences(recorded, now)
    listed = "\n  ".join(found[:40]) + ("\n  ..." if len(found) > 40 else "")
    assert not found, f"golden net: {what} is not what was recorded\n  {listed}\n{_renew()}"


def _renew() -> str:
    others = differences(read("versions"), versions())
    said = f" (other versions: {'; '.join(others)})" if others else ""
    return f"if that is meant, `make golden` records it anew, and the commit says why{said}"
