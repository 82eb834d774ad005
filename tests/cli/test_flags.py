"""What all commands have in common."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import pytest

PYPROJECT = (Path(__file__).parents[2] / "pyproject.toml").read_text()
NAMES = dict(re.findall(r'^(nnssl_\w+) = "nnssl\.cli\.(\w+):main"$', PYPROJECT, re.MULTILINE))
COMMANDS = list(NAMES.values())
HEAVY = {"torch", "nnunetv2", "numpy", "blosc2", "SimpleITK", "matplotlib", "onnxruntime", "pydantic"}
HELPS = """
import json, sys
from importlib import import_module
for name in json.loads(sys.argv[1]):
    try:
        import_module(f"nnssl.cli.{name}").main(["--help"])
    except SystemExit as stopped:
        assert not stopped.code
print(json.dumps(list(sys.modules)))
"""
# Flags whose meaning depends on the command, as nnU-Net's own -m, -i, -o, -f and -p do.
SEVERAL_MEANINGS = {"-m", "-i", "-o", "-f", "-p", "-k", "--overwrite"}


def _flags() -> dict[str, list[tuple[str, argparse.Action]]]:
    """Actions of every flag of every command and kind of picture, with where they are."""
    found: dict[str, list[tuple[str, argparse.Action]]] = defaultdict(list)
    todo = [(name, import_module(f"nnssl.cli.{name}").parser()) for name in COMMANDS]
    while todo:
        where, parser = todo.pop()
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                todo += [(f"{where} {kind}", below) for kind, below in action.choices.items()]
            for flag in action.option_strings:
                found[flag].append((where, action))
    return found


def test_main__no_help_waits_for_torch() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", HELPS, json.dumps(COMMANDS)], capture_output=True, text=True, check=True
    )
    assert len(NAMES) == 18 and all(f"usage: {name} " in shown.stdout for name in NAMES)
    assert not HEAVY & set(json.loads(shown.stdout.splitlines()[-1]))


def test_parsers__a_flag_means_one_thing() -> None:
    for flag, actions in _flags().items():
        if flag not in SEVERAL_MEANINGS:
            assert len({(type(action), action.type) for _, action in actions}) == 1, flag
    devices = _flags()["-device"]
    assert len(devices) == 15  # six of them draw pictures
    assert {(action.default, action.dest) for _, action in devices} == {(None, "device")}
    assert {tuple(action.choices or ())[:2] for _, action in devices} == {("cuda", "cpu")}


def test_parsers__a_run_is_one_thing() -> None:
    runs = [action for flag in ("-m", "-pretrained", "-alignment") for _, action in _flags()[flag]
            if action.metavar == "RUN"]  # fmt: skip
    assert len(runs) == 13 and all("a run's folder, its fold's folder or a checkpoint" in (r.help or "") for r in runs)


@pytest.mark.parametrize("name", COMMANDS)
def test_parsers__every_flag_has_a_help_that_says_its_default(name: str) -> None:
    for action in import_module(f"nnssl.cli.{name}").parser()._actions:
        assert action.help or isinstance(action, argparse._SubParsersAction), action.option_strings
        if action.nargs != 0 and action.default not in (None, [], argparse.SUPPRESS):
            assert str(action.default) in str(action.help), action.option_strings
