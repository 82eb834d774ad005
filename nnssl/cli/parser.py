"""The parser of our commands: a help that begins with a line to type, and mistakes that are one sentence."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from nnssl.core.names import nearest

WRONG_LINE = 2  # exit code of a line that cannot be read, as usual with argparse
_WIDTH = 100  # of what is wrapped here
_MISSING = "the following arguments are required: "


class Parser(argparse.ArgumentParser):
    """As argparse's.

    Args:
        prog: what the user types.
        example: a line that works as it stands on the usual folders.
        about: what the command does, a paragraph.
        exits: meanings of the exit codes.
        options: see argparse.
    """

    def __init__(
        self, prog: str, example: str = "", about: str = "", exits: dict[int, str] | None = None, **options: Any
    ) -> None:
        super().__init__(prog, formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self.example, self.about, self.exits = example, about, exits or {}

    def format_help(self) -> str:
        """The line, what it does, then argparse's help and the exit codes."""
        codes = "; ".join(f"{code} {meaning}" for code, meaning in sorted(self.exits.items()))
        end = f"\n{textwrap.fill(f'exit codes: {codes}', _WIDTH)}\n" if codes else ""
        return f"{self.example}\n\n{textwrap.fill(self.about, _WIDTH)}\n\n{super().format_help()}{end}"

    def error(self, message: str) -> NoReturn:
        """End with code 2, a sentence, and the line that begins the help."""
        if message.startswith(_MISSING):
            message = f"missing: {', '.join(map(self._with_metavar, message.removeprefix(_MISSING).split(', ')))}"
        self.exit(WRONG_LINE, f"error: {message}\nexample: {self.example}\nall options: {self.prog} --help\n")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse's, but -overwrite is no -o with the value verwrite."""
        words = sys.argv[1:] if args is None else list(args)
        if not any(isinstance(action, argparse._SubParsersAction) for action in self._actions):
            for word in words[: words.index("--")] if "--" in words else words:
                self._check_flag(word)
        return super().parse_known_args(words, namespace)

    def _check_flag(self, word: str) -> None:
        name = word.split("=", 1)[0]
        stem, flags = name.lstrip("-"), self._option_string_actions
        if stem == name or not stem[:1].isalpha() or " " in word or any(flag.startswith(name) for flag in flags):
            return  # a value, or a flag or its beginning, which argparse may find ambiguous
        if name[:2] in flags and not name[2:3].isalpha() and flags[name[:2]].nargs != 0:
            return  # -d500
        others = {flag: flag for flag in flags} | {f"-{a.dest}": a.option_strings[0] for a in flags.values()}
        meant = nearest(name, others)
        keyed = next((flag for flag, action in flags.items() if action.metavar == "KEY=VALUE"), None)
        hint = f"; those of the training are given as {keyed} KEY=VALUE" if keyed else ""
        if meant is not None:
            hint = f"; did you mean {self._with_metavar(others[meant])}?"
        self.error(f"there is no option {name}{hint}")

    def _with_metavar(self, name: str) -> str:
        """A flag with what it takes, such as -d ID; the kinds of a KIND."""
        action = self._option_string_actions.get(name.split("/")[0])
        if action is None:
            kinds = next((a.choices for a in self._actions if a.choices and a.metavar == name), None)
            return f"{name}, one of {', '.join(map(str, kinds))}" if kinds else name
        if action.nargs == 0:
            return name
        metavar = action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest)
        return " ".join([name.split("/")[0], *([metavar] if isinstance(metavar, str) else metavar)])
