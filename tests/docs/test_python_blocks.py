"""The Python of README.md and docs/."""

from __future__ import annotations

import ast
from importlib import import_module

import pytest

import nnssl
from tests.docs.pages import PAGES, blocks

SCRIPTS = [(page, block.text) for page, text in PAGES.items() for block in blocks(text, "python")]


@pytest.mark.parametrize(("page", "script"), SCRIPTS, ids=[page for page, _ in SCRIPTS])
def test_python__compiles_and_names_what_exists(page: str, script: str) -> None:
    for node in ast.walk(ast.parse(script, page)):
        if isinstance(node, ast.Import):
            for imported in node.names:
                import_module(imported.name)
        elif isinstance(node, ast.ImportFrom):
            module = import_module(str(node.module))
            assert all(hasattr(module, imported.name) for imported in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "nnssl":
            assert hasattr(nnssl, node.attr)
