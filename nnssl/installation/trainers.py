"""Whether nnU-Net's own search finds our trainers by name."""

from __future__ import annotations

import ast
import importlib.util
import io
import os
import shlex
import traceback
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

import nnssl
from nnssl.core.trainer_search import find_trainer
from nnssl.installation.environment import INSTALL, Check, in_a_line

VARIABLE = "nnUNet_extTrainer"
PREFIX = "nnUNetTrainer_"


def check_trainers() -> Iterator[Check]:
    """The variable that nnU-Net searches, and what its search finds."""
    spec = importlib.util.find_spec("nnssl_trainers")
    ours = Path(spec.origin).parent if spec is not None and spec.origin else None
    names = trainer_names(ours) if ours is not None else []
    if ours is None or not names:
        yield Check("trainers", "fail", "the folder nnssl_trainers is missing or empty", INSTALL)
        return
    beside = Path(str(nnssl.__file__)).resolve().parent.parent
    if ours.resolve().parent != beside:
        yield Check("trainers", "warn", f"they come from {ours}, and nnssl from another installation in {beside}",
                    f"pip uninstall -y nnssl; pip uninstall -y nnssl; {INSTALL}")  # fmt: skip
    yield from _check_variable(ours, names)
    yield _check_search(ours, names)


def trainer_names(folder: Path) -> list[str]:
    """Names of the trainer classes that the files of a flat folder define, sorted; nothing is imported."""
    names = set()
    for file in folder.glob("*.py"):
        try:
            body = ast.parse(file.read_bytes()).body
        except SyntaxError:
            continue  # where nnU-Net's search stops: _check_search says so
        names |= {node.name for node in body if isinstance(node, ast.ClassDef) and node.name.startswith(PREFIX)}
    return sorted(names)


def _entries() -> list[str]:
    return [entry for entry in os.environ.get(VARIABLE, "").split(os.pathsep) if entry.strip()]


def _with(ours: Path, entries: list[str]) -> list[str]:
    return entries if any(_same(entry, ours) for entry in entries) else [*entries, str(ours)]


def _export(entries: list[str]) -> str:
    return f"export {VARIABLE}={shlex.quote(os.pathsep.join(entries))}"


def _check_variable(ours: Path, names: list[str]) -> Iterator[Check]:
    entries = _entries()
    missing = [entry for entry in entries if not os.path.exists(entry)]
    if missing:
        yield Check(VARIABLE, "warn", f"nnU-Net silently skips what does not exist: {', '.join(missing)}",
                    _export(_with(ours, [entry for entry in entries if entry not in missing])))  # fmt: skip
    position = next((i for i, entry in enumerate(entries) if _same(entry, ours)), None)
    if position is None:
        yield Check(VARIABLE, "fail", f"our folder is not in it: the start-up file {ours.name}.pth was not read",
                    _export(_with(ours, entries)))  # fmt: skip
        return
    for entry in entries[:position]:
        hidden = sorted(set(names) & set(trainer_names(Path(entry))))
        if hidden:
            yield Check(VARIABLE, "warn", f"nnU-Net takes {', '.join(hidden)} from {entry}, which comes before {ours}",
                        _export([other for other in entries if other != entry]))  # fmt: skip
    yield Check(VARIABLE, "ok", os.pathsep.join(entries))


def _same(entry: str, folder: Path) -> bool:
    return os.path.realpath(entry) == os.path.realpath(folder)


def _check_search(ours: Path, names: list[str]) -> Check:
    try:
        import nnunetv2.utilities.find_objects  # noqa: F401
    except Exception as error:  # of any kind, as for torch
        return Check("trainers", "fail", f"nnU-Net's search cannot be imported: {in_a_line(error)}",
                     'pip install "nnunetv2>=2.8"')  # fmt: skip
    lost = []
    for name in names:
        try:
            # nnU-Net prints each module that it inspects, and their warnings are not about the installation
            with redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                find_trainer(name)
        except (Exception, SystemExit) as error:  # the search runs every module of every folder: any error is possible
            culprit = _culprit(error)
            if culprit is None and isinstance(error, RuntimeError):  # nnU-Net's error for a name that it does not find
                lost.append(name)
            else:
                return _stopped(name, error, culprit, ours)
    if not lost:
        return Check("trainers", "ok", f"nnU-Net finds {', '.join(names)}")
    return Check("trainers", "fail", f"nnU-Net does not find {', '.join(lost)}", _export(_with(ours, _entries())))


def _culprit(error: BaseException) -> tuple[str, str] | None:
    """Folder of the variable and file in it whose import ended the search."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        files.append(error.filename)
    for file in reversed(files):
        for entry in _entries():
            if Path(os.path.abspath(entry)) in Path(file).parents:
                return entry, file
    return None


def _stopped(name: str, error: BaseException, culprit: tuple[str, str] | None, ours: Path) -> Check:
    """A module that cannot be imported hides the trainers of all others."""
    why = in_a_line(error)
    if culprit is None:
        return Check("trainers", "fail", f"nnU-Net's search for {name} ends with {why}", INSTALL)
    entry, file = culprit
    if _same(entry, ours):
        return Check("trainers", "fail", f"our {file} cannot be imported: {why}", INSTALL)
    rest = [other for other in _entries() if other != entry and os.path.exists(other)]
    return Check("trainers", "fail", f"nnU-Net's search for every trainer stops in {file}: {why}",
                 f"{_export(_with(ours, rest))}   (or repair that file)")  # fmt: skip
