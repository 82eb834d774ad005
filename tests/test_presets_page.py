"""docs/presets.md against the script that writes it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from nnssl.data.presets import presets
from tests.cards import pretends_a_card

ROOT = Path(__file__).parent.parent


def stored() -> list[tuple[str, ...]]:
    """Rows of the table."""
    lines = (ROOT / "docs" / "presets.md").read_text().splitlines()
    return [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines if line.startswith("| `")]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return import_module("presets")


def test_page__is_what_was_rehearsed_and_measured(script: Any) -> None:
    rows = stored()
    assert rows
    for row in rows:
        preset, method, volumes, gib, recomputed, tflop, steps = row[:7]
        name = preset.strip("`")
        assert f"nnsslPlans_{name}" in presets() and method in script.METHODS[name]
        line = script.Line(name, method, int(volumes), float(gib), float(recomputed), float(tflop),
                           int(steps.replace(",", "")), script.measured(name, method, int(volumes)))  # fmt: skip
        assert line.cells == row and line.recomputed_gib <= line.gib
    assert sum(row[7] != "-" for row in rows) >= 7


@pretends_a_card
@pytest.mark.slow
def test_page__a_line_is_that_of_a_rehearsal(script: Any) -> None:
    row = next(row for row in stored() if row[1] == "sam")
    line = script.line_of("sam", "sam")
    for value, cell in ((line.gib, 3), (line.recomputed_gib, 4), (line.tflop, 5)):
        assert float(row[cell]) == pytest.approx(value, rel=0.05, abs=0.06)
