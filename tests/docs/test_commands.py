"""Every command of README.md and docs/ against its parser, and every name in them against the code."""

from __future__ import annotations

import argparse
import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest

import nnssl
from nnssl.classification.method import ClassificationConfig
from nnssl.data.presets import presets
from nnssl.methods.options import override
from nnssl.methods.registry import get_method, method_names
from tests.docs.pages import PAGES, ROOT, commands, inline
from tests.docs.parsers import OWN, flags, parser_of

# Commands of the shell and of other packages.
FOREIGN = {"cd", "export", "pip", "sbatch", "tensorboard", "torchrun"}
SOURCE = "\n".join(file.read_text() for folder in ("nnssl", "nnssl_trainers") for file in (ROOT / folder).rglob("*.py"))
NAMES = set(re.findall(r"nnssl_[a-z_]+", SOURCE))
SETTINGS = "\n".join(file.read_text() for file in (ROOT / "nnssl" / "finetuning").glob("*.py"))
TRAINERS = set(re.findall(r"^class (nnUNetTrainer_\w+)", SOURCE, flags=re.MULTILINE))
STOCK = {"nnUNetTrainer", "nnUNetTrainer_1epoch"}
TARGETS = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
EXTRAS = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE))


@pytest.mark.parametrize("page", PAGES)
def test_commands__are_known_and_their_parser_takes_them(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands(PAGES[page]):
        try:
            _check(words)
        except SystemExit:
            pytest.fail(f"{page}: {shlex.join(words)}\n{capsys.readouterr().err}")


def _check(words: list[str]) -> None:
    command, *arguments = words
    if command == "make":
        assert all(word in TARGETS or "=" in word for word in arguments), words
    elif command == "python":
        exists = find_spec(arguments[1]) if arguments[0] == "-m" else (ROOT / arguments[0]).is_file()
        assert exists, words
    elif command == "pip":
        assert all(extra in EXTRAS for extra in re.findall(r"\[(\w+)\]", " ".join(arguments))), words
    elif command not in FOREIGN:
        _check_values(command, parser_of(command).parse_args(arguments))


def _check_values(command: str, given: argparse.Namespace) -> None:
    """Names that a parser takes as they are: methods, their options, presets."""
    method = getattr(given, "method", None)
    if method == "mirror":  # the method that docs/contributing.md adds, in its own test
        return
    assert method in {None, *method_names(), "random"}
    if options := getattr(given, "options", None):
        override(get_method(method).config_class() if method else ClassificationConfig(), options)
    plans = getattr(given, "plans", None) or getattr(given, "p", None)
    if isinstance(plans, str) and command in ("nnssl_pretrain", "nnssl_plan_and_preprocess"):
        assert plans.startswith("nnUNet") or plans in presets() or plans == "nnsslPlans_tiny32", plans


@pytest.mark.parametrize("page", PAGES)
def test_trainers__exist(page: str) -> None:
    named = set(re.findall(r"\b(nnUNetTrainer(?:_[A-Za-z0-9]+)?)\b(?!_)", PAGES[page].replace("nnUNetTrainer_`", "")))
    assert named <= TRAINERS | STOCK


def test_trainers__are_all_in_their_page() -> None:
    page = PAGES["docs/trainers.md"]
    published = {name for name in TRAINERS if name.endswith("Published")}
    missing = {name for name in TRAINERS - published if f"`{name.removeprefix('nnUNetTrainer_')}`" not in page}
    assert not missing and "Published" in page


@pytest.mark.parametrize("page", PAGES)
def test_flags__in_the_running_text_exist(page: str) -> None:
    spans = [span.split() for span in inline(PAGES[page]) if re.match(r"(nnssl_|nnUNetv2_)\w+ ", f"{span} ")]
    for command, *arguments in (words for words in spans if words[0] in OWN or words[0].startswith("nnUNetv2_")):
        given = {word for word in arguments if re.match(r"--?[a-zA-Z]", word)}
        assert given <= (flags(command) if given else set()), (command, given - flags(command))


@pytest.mark.parametrize("page", PAGES)
def test_options__in_the_running_text_are_those_of_a_method(page: str) -> None:
    of_methods = {field for name in method_names() for field in get_method(name).config_class.__dataclass_fields__}
    spans = [span for span in inline(PAGES[page]) if span.startswith("-o ") and "=" in span]
    named = {option.partition("=")[0] for span in spans for option in span.split()[1:]}
    assert named <= of_methods


@pytest.mark.parametrize("page", PAGES)
def test_names__of_commands_and_variables_are_those_of_the_code(page: str) -> None:
    for name in set(re.findall(r"(?<![\w/.*])nnssl_[a-z][a-z_]*(?![\w/*])", PAGES[page])):
        setting = f'"{name.removeprefix("nnssl_")}"'
        assert name in OWN or name in NAMES or setting in SETTINGS, name


def test_names__of_nnunets_variables_are_those_of_the_code() -> None:
    package = Path(str(find_spec("nnunetv2").submodule_search_locations[0]))  # type: ignore[union-attr, index]
    code = SOURCE + "\n".join(file.read_text() for file in package.rglob("*.py"))
    named = {name for page in PAGES.values() for name in re.findall(r"(?<![\w/])nnUNet_[a-zA-Z_]+", page)}
    assert not {name for name in named if name not in code}


@pytest.mark.parametrize("page", PAGES)
def test_names__of_the_package_exist(page: str) -> None:
    for name in {span.split("(")[0] for span in inline(PAGES[page]) if re.match(r"nnssl\.[a-z_]+(\(|$)", span)}:
        assert hasattr(nnssl, name.removeprefix("nnssl.")) or find_spec(name), name
