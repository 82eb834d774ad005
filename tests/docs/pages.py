"""README.md and the pages of docs/: their fenced blocks, and the commands in them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = {
    file.relative_to(ROOT).as_posix(): file.read_text() for file in [README, *sorted((ROOT / "docs").glob("*.md"))]
}
_SHELL = ("bash", "console")  # `console`: what needs a cluster or several machines, and no test can run
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", flags=re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^(?:nnssl_\w+|nnUNetv2_\w+|make|python -m) (?:.*\\\n)*.*$", flags=re.MULTILINE)


class Block(NamedTuple):
    """A fenced block."""

    language: str
    text: str


def blocks(text: str, *languages: str) -> list[Block]:
    """The fenced blocks of a page in these languages (all without one), as they are typed."""
    found = [Block(language, re.sub(rf"^{indent}", "", body, flags=re.MULTILINE))
             for indent, language, body in _FENCE.findall(text)]  # fmt: skip
    return [block for block in found if not languages or block.language in languages]


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", text)


def inline(text: str) -> list[str]:
    """What stands in backticks in the running text, its line ends as spaces."""
    return [re.sub(r"\s+", " ", span) for span in re.findall(r"`([^`]+)`", prose(text))]


def words_of(script: str) -> list[list[str]]:
    """The commands of a script, word by word, without comments and without the variables that are set before them."""
    lines = script.replace("\\\n", " ").splitlines()
    commands = [shlex.split(line, comments=True) for line in lines]
    return [command for words in commands if (command := _without_variables(words))]


def commands(text: str) -> list[list[str]]:
    """The commands of a page, and those that torchrun and sbatch start; job scripts are left out.

    In shell blocks and indented ones that is every line, in other blocks what begins with a command's name.
    """
    scripts = [block.text for block in blocks(text, *_SHELL) if not block.text.startswith("#!")]
    scripts += re.findall(r"(?<=\n\n)((?:    \S.*\n)+)", prose(text))
    scripts += [line for block in blocks(text, "", "text") for line in _COMMAND.findall(block.text)]
    found = [command for script in scripts for command in words_of(script)]
    return [*found, *(inner for command in found for inner in _inside(command))]


def _without_variables(words: list[str]) -> list[str]:
    while words and re.match(r"\w+=", words[0]):
        words = words[1:]
    return words


def _inside(command: list[str]) -> list[list[str]]:
    if command[0] == "torchrun":
        module = command.index("-m")
        return [[f"nnssl_{command[module + 1].removeprefix('nnssl.cli.')}", *command[module + 2 :]]]
    if command[0] != "sbatch" or "--wrap" not in command:
        return []
    return words_of(re.sub(r"\$SLURM_\w+", "0", command[-1]))
