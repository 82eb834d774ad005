"""What all commands have in common."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from nnssl.cli.flags import ORDER
from nnssl.cli.parser import Parser

PYPROJECT = (Path(__file__).parents[2] / "pyproject.toml").read_text()
NAMES = dict(re.findall(r'^(nnssl\w*) = "nnssl\.cli\.(\w+):main"$', PYPROJECT, re.MULTILINE))
COMMANDS = list(NAMES.values())
EXAMPLE = re.compile(r"^  (nnssl_(?:[^\\\n]|\\\n)*)$", re.MULTILINE)
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
SEVERAL_MEANINGS = {"-m", "-i", "-o", "-f", "-p", "-point", "--no_pbar", "--disable_progress_bar"}
# Of the others, those that a command explains or names in its own way.
OWN_WORDS = {"-d", "-c", "-k", "-point", "-device", "-set", "-overwrite_plans_name", "-seeds", "-target", "-format",
             "-h", "--help", "--finetune"}  # fmt: skip


def _parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command and kind of picture with its parser."""
    for name in COMMANDS:
        parser = import_module(f"nnssl.cli.{name}").parser()
        yield name, parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from ((f"{name} {kind}", below) for kind, below in action.choices.items())


def _flags() -> dict[str, list[tuple[str, argparse.Action]]]:
    """Actions of every flag of every command and kind of picture, with where they are."""
    found: dict[str, list[tuple[str, argparse.Action]]] = defaultdict(list)
    for where, parser in _parsers():
        for action in parser._actions:
            for flag in action.option_strings:
                found[flag].append((where, action))
    return found


def test_main__no_help_waits_for_torch() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", HELPS, json.dumps(COMMANDS)], capture_output=True, text=True, check=True
    )
    assert len(NAMES) == 19 and all(f"usage: {name} " in shown.stdout for name in NAMES)
    assert not HEAVY & set(json.loads(shown.stdout.splitlines()[-1]))


def test_parsers__a_flag_means_one_thing() -> None:
    for flag, actions in _flags().items():
        if flag not in SEVERAL_MEANINGS:
            assert len({(type(action), action.type) for _, action in actions}) == 1, flag
    devices = _flags()["-device"]
    assert len(devices) == 15  # six of them draw pictures
    assert {(action.default, action.dest) for _, action in devices} == {(None, "device")}
    assert {tuple(action.choices or ())[:2] for _, action in devices} == {("cuda", "cpu")}


def test_parsers__a_shared_flag_has_one_metavar_help_and_default() -> None:
    for flag, actions in _flags().items():
        if flag not in SEVERAL_MEANINGS | OWN_WORDS and len({where.split()[0] for where, _ in actions}) > 1:
            assert len({(a.metavar, a.help, str(a.default)) for _, a in actions}) == 1, flag


def test_parsers__values_follow_one_dash_and_switches_have_two() -> None:
    for where, parser in _parsers():
        for action in parser._actions:
            if action.option_strings and not isinstance(action, argparse._HelpAction):
                assert action.option_strings[0].startswith("--") == (action.nargs == 0), (where, action.option_strings)


def test_parsers__shared_flags_come_in_one_order() -> None:
    for where, parser in _parsers():
        names = [next(iter(action.option_strings), "") for action in parser._optionals._group_actions]
        shared = [ORDER.index(name) for name in names if name in ORDER]
        assert shared == sorted(shared), (where, names)


def test_parsers__every_line_of_ours_in_a_help_can_be_read() -> None:
    assert len(list(_parsers())) == 25
    for where, parser in _parsers():
        assert isinstance(parser, Parser) and parser.format_help().startswith(f"{parser.prog} ".strip()), where
        for line in (parser.example, *EXAMPLE.findall(parser.epilog or "")):
            words = shlex.split(re.sub(r"\\\n *", "", line).split("  ")[0])
            if words[0] in NAMES and "..." not in words:
                import_module(f"nnssl.cli.{NAMES[words[0]]}").parser().parse_args(words[1:])


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
