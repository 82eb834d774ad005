"""What the tab key offers for our flags: datasets, pretrainings, plans and trainers that are there."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import nnssl
from nnssl.data.presets import presets
from nnssl.methods.registry import method_names

_FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
_NOT_PLANS = {"dataset", "dataset_fingerprint", "splits_final"}  # JSON files beside the plans
_TRAINER = re.compile(r"^class (nnUNetTrainer_\w+)", re.MULTILINE)
_PLANNERS = ("ExperimentPlanner", "nnUNetPlannerResEncM", "nnUNetPlannerResEncL", "nnUNetPlannerResEncXL")
_CONFIGURATIONS = ("3d_fullres", "3d_lowres", "2d")
_FOLDS = ("0", "1", "2", "3", "4", "all")
Completer = Callable[..., Iterable[str]]


def complete(parser: argparse.ArgumentParser) -> NoReturn:
    """Print the completions of the line that the shell has put into the environment, and end the process."""
    try:
        import argcomplete
    except ImportError:  # removed since the shell was told of it; the command itself must not run
        sys.exit(1)

    class Files(argcomplete.FilesCompleter):  # type: ignore[misc]
        def __call__(self, prefix: str, **given: Any) -> list[str]:
            return list(super().__call__(prefix=_expanded(prefix), **given))

    files = Files()

    _attach(parser, files)
    argcomplete.autocomplete(parser, default_completer=files, validator=_continues)
    sys.exit(1)


def _expanded(word: str) -> str:
    """A word with its variables and ~, as the shell will see it: bash itself would quote the $ of $nnUNet_results/."""
    return os.path.expanduser(os.path.expandvars(word))


def _continues(completion: str, word: str) -> bool:
    return completion.startswith((word, _expanded(word)))


def _attach(parser: argparse.ArgumentParser, files: Completer) -> None:
    """Give every argument the completer of its metavar; the others get files."""
    by_metavar: dict[Any, Completer] = {
        "ID": datasets,
        "METHOD": _one_of(method_names()),
        "METHOD|random": _one_of((*method_names(), "random")),
        "RUN": _or(runs, files),
        "ID|RUN": _or(_both(datasets, runs), files),
        "IMAGES": _or(datasets, files),
        "PLANS": plans,
        "PLANNER": _one_of(_PLANNERS),
        "CONFIGURATION": _one_of(_CONFIGURATIONS),
        "FOLD": _one_of(_FOLDS),
        "ITEM": trainers,
    }
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for kind in action.choices.values():
                _attach(kind, files)
        elif action.metavar in by_metavar and action.nargs != 0:
            action.completer = by_metavar[action.metavar]  # type: ignore[attr-defined]


def datasets(prefix: str, **_: object) -> dict[str, str]:
    """Numbers of the datasets in nnU-Net's folders, or their names if one has been begun."""
    names = {path.name for folder in _FOLDERS for path in _inside(folder, "Dataset[0-9]*_*")}
    if prefix.startswith("D"):
        return dict.fromkeys(sorted(names), "")
    return {name[len("Dataset") :].split("_")[0].lstrip("0"): name for name in sorted(names)}


def runs(prefix: str, **_: object) -> list[str]:
    """Folders of pretrainings in nnUNet_results; for random:RUN too."""
    before = "random:" if prefix.startswith("random:") else ""
    return [f"{before}{path}" for path in sorted(_inside("nnUNet_results", "Dataset*/nnssl_*__*__*"))]


def plans(**_: object) -> list[str]:
    """Presets, and plans of any dataset."""
    made = {path.stem for path in _inside("nnUNet_preprocessed", "Dataset*/*Plans*.json")} - _NOT_PLANS
    return sorted({"nnUNetPlans", *presets(), *made})


def trainers(**_: object) -> list[str]:
    """Classes of this package, of nnUNet_extTrainer, and nnU-Net's own."""
    own = Path(nnssl.__file__).resolve().parent.parent / "nnssl_trainers"
    folders = [own, *(Path(name) for name in os.environ.get("nnUNet_extTrainer", "").split(os.pathsep) if name)]
    files = sorted(file for folder in folders for file in folder.glob("*.py"))
    return ["nnUNetTrainer", *dict.fromkeys(name for file in files for name in _TRAINER.findall(file.read_text()))]


def _inside(variable: str, pattern: str) -> Iterator[Path]:
    folder = os.environ.get(variable)
    return Path(folder).glob(pattern) if folder else iter(())


def _one_of(names: Iterable[str]) -> Completer:
    return lambda **_: list(names)


def _both(first: Completer, second: Completer) -> Completer:
    return lambda **given: [*first(**given), *second(**given)]


def _or(first: Completer, second: Completer) -> Completer:
    """What the first one offers for the word as far as it is typed, else what the second one does."""

    def offered(prefix: str, **given: object) -> Iterable[str]:
        found = first(prefix=prefix, **given)
        return found if any(_continues(name, prefix) for name in found) else second(prefix=prefix, **given)

    return offered
