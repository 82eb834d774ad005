"""`nnssl`: which commands there are, in the order of a user's work."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

import nnssl
from nnssl.cli.parser import Parser
from nnssl.cli.run import complete_if_asked, run
from nnssl.cli.table import COMMANDS, OURS, STAGES
from nnssl.core.errors import UserError
from nnssl.core.names import nearest

_DOCS = Path(nnssl.__file__).resolve().parent.parent / "docs"  # in the repository only
_SHORTEST = """The shortest way, with scans in Dataset500 and labelled ones in Dataset017 of nnUNet_raw:
  nnssl_pretrain -d 500 -m vox2vec
  nnssl_transfer -s 500 -t 17
  nnUNetv2_train ...          the line that nnssl_transfer prints
"""


def parser() -> Parser:
    """The arguments of `nnssl`."""
    p = Parser("nnssl", "nnssl", "List the commands of nnssl in the order of work.")
    p.add_argument("-completion", choices=("bash", "zsh", "fish"),
                   help="print what makes this shell complete our commands with the tab key")  # fmt: skip
    p.add_argument("--version", action="version", version=nnssl.__version__, help="show the version and exit")
    return p


def listed() -> str:
    """All commands with a line each, and where to read on."""
    width = max(len(command.name) for command in COMMANDS)
    lines = [f"nnssl {nnssl.__version__}: self-supervised pretraining on nnU-Net's folders. The commands in the order "
             "of work:"]  # fmt: skip
    for stage, commands in STAGES.items():
        lines += ["", stage, *(f"  {command.name:{width}}  {command.does}" for command in commands)]
    where = str(_DOCS) if _DOCS.is_dir() else "docs in the repository"
    lines += ["", _SHORTEST, f"COMMAND --help explains each. Pages: README.md, and {where}; commands.md there has all "
                             "flags."]  # fmt: skip
    return "\n".join(lines)


def _command(argv: list[str] | None) -> None:
    words = sys.argv[1:] if argv is None else argv
    p = parser()
    if words and not words[0].startswith("-"):
        _not_a_word(p, words)
    given: argparse.Namespace = p.parse_args(words)
    if given.completion is None:
        print(listed())
        return
    try:
        from argcomplete import shellcode
    except ImportError as error:
        raise UserError("-completion needs argcomplete; type: pip install argcomplete") from error
    print(shellcode(["nnssl", *OURS], shell=given.completion))


def _not_a_word(p: Parser, words: list[str]) -> NoReturn:
    """Ours are commands of their own: say which was meant."""
    named = {name.removeprefix("nnssl_"): name for name in OURS}
    meant = nearest(words[0].removeprefix("nnssl_"), named, 0.6)
    p.error(f"nnssl only lists the commands; type {' '.join([named[meant], *words[1:]])}" if meant is not None
            else f"there is no command {words[0]}; nnssl without arguments lists all")  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    """See `nnssl.cli.run.run`."""
    complete_if_asked(parser)
    run(_command, argv)


if __name__ == "__main__":
    main()
