"""docs/commands.md against the parsers of the commands, and its exit codes against those of the code."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from nnssl.cli.flags import EXITS, LEFT_OUT
from nnssl.cli.table import COMMANDS, OURS

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "commands.md"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return import_module("commands_page")


def test_page__is_as_the_parsers_are(script: Any) -> None:
    text = PAGE.read_text()
    assert script.page(text) == text, "type: python benchmarks/commands_page.py"


def test_page__names_every_command_and_flag(script: Any) -> None:
    text = PAGE.read_text()
    sections = {part.split("\n")[0]: part for part in re.split(r"^### ", text, flags=re.MULTILINE)[1:]}
    assert list(sections) == list(OURS) and all(f"`{command.name}`" in text for command in COMMANDS)
    for name, kinds in script.parsers().items():
        for parser in kinds.values():
            assert parser.example in sections[name]
            for action in parser._actions:
                if action.option_strings and "-h" not in action.option_strings:
                    assert f"`{action.option_strings[0]}`" in sections[name], (name, action.option_strings)


def test_page__exit_codes() -> None:
    table = re.search(r"<!-- exits -->\n(.*?)<!-- end -->", PAGE.read_text(), re.DOTALL)
    assert table is not None
    # tests/cli/test_run.py: 1, 75 and 130; test_parser.py: 2; test_transfer.py and test_embed.py: 3
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", table[1], re.MULTILINE)} == {*EXITS, LEFT_OUT}
    assert {*EXITS, LEFT_OUT} == {0, 1, 2, 3, 75, 130}
