"""A table of bad inputs as data: how to make each, what meets it, what must be said, and the runner.

Every module of this package that has `ROWS` adds to the table. `python -m tests.bad_inputs.rows` runs it and counts.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import pkgutil
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from nnssl.core.errors import UserError

Kind = Literal["sentence", "accepted by intent", "traceback"]
FOLDERS = {"nnUNet_raw": "raw", "nnUNet_preprocessed": "pre", "nnUNet_results": "res"}


@dataclass(frozen=True)
class Said:
    """How a command or a function ended.

    Args:
        code: exit code of the command; of a function 0, or 1 after a UserError.
        text: everything that was said, or the message.
        failed: the traceback where it ended in any other way; empty otherwise.
    """

    code: int
    text: str
    failed: str = ""


@dataclass(frozen=True)
class Row:
    """One bad input.

    Args:
        name: unique; the test's id.
        make: writes the input to a folder, in which `raw`, `pre` and `res` are nnU-Net's three folders.
        run: meets the input, see `command` and `function`.
        expected: parts that one line of the output must have, such as the case, key or number.
        code: exit code.
        intent: why the input is accepted; only with code 0.
        env: further environment variables.
    """

    name: str
    make: Callable[[Path], object]
    run: Callable[[Path], Said]
    expected: tuple[str, ...]
    code: int
    intent: str = ""
    env: Mapping[str, str] | None = None


def command(module: str, *argv: str) -> Callable[[Path], Said]:
    """Run the command `nnssl.cli.<module>` in this process; `{}` in an argument becomes the row's folder."""

    def run(folder: Path) -> Said:
        main = importlib.import_module(f"nnssl.cli.{module}").main
        return _said(lambda: main([argument.replace("{}", str(folder)) for argument in argv]))

    return run


def function(call: Callable[[Path], object], *sentences: type[Exception]) -> Callable[[Path], Said]:
    """Call a function of the row's folder; exceptions of the types `sentences` are sentences, as UserError is."""
    return lambda folder: _said(lambda: call(folder), sentences)


def run_row(row: Row, folder: Path) -> Kind:
    """Make the input of a row in an empty folder, run it, and check what is said.

    Raises:
        AssertionError: another exit code, nothing said of what was expected, or a traceback.
    """
    for name in FOLDERS.values():
        (folder / name).mkdir(exist_ok=True)
    with mock.patch.dict(os.environ, {**{k: str(folder / v) for k, v in FOLDERS.items()}, **(row.env or {})}):
        row.make(folder)
        said = row.run(folder)
    kind = kind_of(said)
    assert kind != "traceback", f"{row.name} ends in a traceback:\n{said.failed or said.text}"
    assert said.code == row.code, f"{row.name}: exit code {said.code}, not {row.code}:\n{said.text}"
    assert bool(row.intent) == (row.code == 0), f"{row.name}: what is accepted (code 0), and only that, has an intent"
    lines = said.text.splitlines() or [""]
    assert any(all(part in line for part in row.expected) for line in lines), (
        f"{row.name}: no line has {row.expected}:\n{said.text}"
    )
    return kind


def kind_of(said: Said) -> Kind:
    """What an outcome counts as."""
    if said.failed or "Traceback (most recent call last)" in said.text:
        return "traceback"
    return "sentence" if said.code else "accepted by intent"


def all_rows() -> list[Row]:
    """The rows of all modules of this package."""
    package = importlib.import_module(__package__ or "tests.bad_inputs")
    modules = [importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    return [row for module in modules for row in getattr(module, "ROWS", [])]


def _said(call: Callable[[], Any], sentences: tuple[type[Exception], ...] = ()) -> Said:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            result = call()
        except SystemExit as end:
            return Said(end.code if isinstance(end.code, int) else 1, out.getvalue())
        except BaseException as error:
            failed = "" if isinstance(error, (UserError, *sentences)) else traceback.format_exc()
            return Said(1, f"{out.getvalue()}{error}", failed)
    return Said(0, f"{out.getvalue()}{'' if result is None else result}")


def _outcomes() -> Iterator[str]:
    for row in all_rows():
        with tempfile.TemporaryDirectory() as folder:
            try:
                yield run_row(row, Path(folder))
            except AssertionError as error:
                print(error)
                yield "traceback" if "traceback" in str(error) else "wrong"


if __name__ == "__main__":
    for outcome, count in Counter(_outcomes()).most_common():
        print(f"{count:4d} {outcome}")
