"""The argument parser of every command that the pages name, without running the command."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

import pytest

from tests.docs.pages import ROOT

OWN = dict(re.findall(r'^(nnssl_\w+) = "([\w.]+):main"$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE))


class _Reached(Exception):
    """A command has built its parser."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


@cache
def parser_of(command: str) -> argparse.ArgumentParser:
    """That of one of our commands, or of nnU-Net's, which build theirs where they use it."""
    if command.startswith("nnssl_"):
        made: argparse.ArgumentParser = import_module(OWN[command]).parser()
        return made
    (entry,) = entry_points(group="console_scripts", name=command)
    run: Callable[[], Any] = entry.load()

    def stop(parser: argparse.ArgumentParser, *_: Any) -> None:
        raise _Reached(parser)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        try:
            run()
        except _Reached as reached:
            return reached.parser
    raise AssertionError(f"{command} has no parser")


def flags(command: str) -> set[str]:
    """Every flag of a command, those of its kinds included."""
    return _flags(parser_of(command))


def _flags(parser: argparse.ArgumentParser) -> set[str]:
    found = {flag for action in parser._actions for flag in action.option_strings}
    kinds = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return found.union(*(_flags(p) for choices in kinds for p in choices.values()))
