"""docs/commands.md: its tables from the parsers of the commands; `python benchmarks/commands_page.py` renews them."""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Callable, Container, Iterable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from nnssl.cli.flags import ORDER
from nnssl.cli.parser import Parser
from nnssl.cli.table import OURS, STAGES
from nnssl.core.files import replace_file

PAGE = Path(__file__).resolve().parent.parent / "docs" / "commands.md"
_BLOCK = re.compile(r"(<!-- (?P<kind>commands|shared|own|exits) -->\n).*?(<!-- end -->)", re.DOTALL)
_FEW = 6  # commands that a line of the exit codes names; more are "all others"
_DEFAULT = re.compile(r" ?\(default: (?P<value>.*)\)$")


class Entry(NamedTuple):
    """A flag as it is typed, and what it means."""

    typed: str
    meaning: str


def page(text: str) -> str:
    """The text with what stands between its markers made anew from the parsers."""
    makers: dict[str, Callable[[], str]] = {"commands": _commands, "shared": _shared, "own": _own, "exits": _exits}
    return _BLOCK.sub(lambda block: f"{block[1]}\n{makers[block['kind']]()}\n{block[3]}", text)


def parsers() -> dict[str, dict[str, Parser]]:
    """Every command with its parser, or those of its kinds of pictures by their names."""
    found = {}
    for name, command in OURS.items():
        parser = import_module(f"nnssl.cli.{command.module}").parser()
        kinds = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        found[name] = dict(kinds[0]) if kinds else {"": parser}
    return found


def entries(parser: Parser) -> dict[Entry, str]:
    """Flags and positional arguments of a parser as the page shows them, with their defaults."""
    found = {}
    for action in parser._actions:
        if not isinstance(action, argparse._HelpAction):
            said = " ".join((action.help or "").replace("%%", "%").split())
            default = _DEFAULT.search(said)
            found[Entry(_typed(action), _DEFAULT.sub("", said))] = default["value"] if default else ""
    return found


def _typed(action: argparse.Action) -> str:
    names = ", ".join(f"`{name}`" for name in action.option_strings)
    if action.nargs == 0:
        return names
    metavar = action.metavar or f"{{{','.join(map(str, action.choices or ()))}}}"
    words = [metavar] * (action.nargs if isinstance(action.nargs, int) else 1) if isinstance(metavar, str) else metavar
    value = f"`{' '.join(words)}{' ...' if action.nargs == '+' else ''}`"
    return f"{names} {value}" if names else value


def _several() -> dict[Entry, dict[str, str]]:
    """What at least two commands have in common, with their names and defaults."""
    found: dict[Entry, dict[str, str]] = defaultdict(dict)
    for name, kinds in parsers().items():
        for parser in kinds.values():
            for entry, default in entries(parser).items():
                found[entry][name] = default
    return {entry: defaults for entry, defaults in found.items() if len(defaults) > 1}


def _commands() -> str:
    rows = []
    for stage, commands in STAGES.items():
        rows.append((f"**{stage}**", "", ""))
        for command in commands:
            name = f"[`{command.name}`](#{command.name})" if command.module else f"`{command.name}` (nnU-Net's)"
            rows.append((name, command.does, command.output))
    return _table(("command", "what it does", "main output"), rows)


def _shared() -> str:
    rows = []
    for entry, defaults in sorted(_several().items(), key=lambda item: ORDER.index(_flag(item[0]))):
        rows.append((*entry, _defaults(defaults), _named(defaults)))
    return _table(("flag", "meaning", "default", "commands"), rows)


def _defaults(of: dict[str, str]) -> str:
    """The default of the most commands, then those of the others."""
    values = list(of.values())
    usual = max(values, key=values.count)
    if values.count(usual) < 2:
        usual = ""
    others = (f"{_named([name])}: {value}" for name, value in of.items() if value not in ("", usual))
    return "; ".join([*([usual] if usual else []), *others])


def _flag(entry: Entry) -> str:
    """The first name of a flag."""
    return entry.typed.split("`")[1]


def _named(names: Iterable[str]) -> str:
    """Names of commands without what all have in common."""
    return ", ".join(f"`{name.removeprefix('nnssl_')}`" for name in names)


def _own() -> str:
    several = _several()
    return "\n".join(_section(name, kinds, several) for name, kinds in parsers().items())


def _section(name: str, kinds: dict[str, Parser], several: Container[Entry]) -> str:
    """Examples of a command, a table of its own flags, and the names of the others."""
    examples = "\n".join(parser.example for parser in kinds.values())
    found: dict[Entry, dict[str, str]] = defaultdict(dict)
    for kind, parser in kinds.items():
        for entry, default in entries(parser).items():
            found[entry][kind] = default
    own = [entry for entry in found if entry not in several]
    flags = list(dict.fromkeys(map(_flag, own)))
    rows = [(*entry, next(iter(found[entry].values())), _kinds(list(found[entry]), len(kinds)))
            for entry in sorted(own, key=lambda entry: flags.index(_flag(entry)))]  # fmt: skip
    head = ("flag", "meaning", "default", "kinds")
    columns = 4 if len(kinds) > 1 else 3
    text = f"### {name}\n\n```\n{examples}\n```\n"
    if rows:
        text += f"\n{_table(head[:columns], [row[:columns] for row in rows])}"
    if shared := ", ".join(f"`{_flag(entry)}`" for entry in found if entry in several):
        text += f"\nShared: {shared}.\n"
    return text


def _kinds(names: list[str], number: int) -> str:
    return "all" if len(names) == number else ", ".join(names)


def _exits() -> str:
    found: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, command in OURS.items():
        for code, meaning in import_module(f"nnssl.cli.{command.module}").parser().exits.items():
            found[code][meaning].append(name)
    rows = []
    for code, meanings in sorted(found.items()):
        for meaning, names in sorted(meanings.items(), key=lambda item: -len(item[1])):
            others = "all" if len(names) == len(OURS) else "all others"
            rows.append((str(code), meaning, _named(names) if len(names) <= _FEW else others))
    return _table(("code", "meaning", "commands"), rows)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    cells = [[cell.replace("|", "\\|").replace("<", "&lt;") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    replace_file(PAGE, page(PAGE.read_text()).encode())
    print(f"written: {PAGE}")
