"""`nnssl_demo`: the whole job on phantom CTs, command by command."""

from __future__ import annotations

import argparse

from nnssl.cli.flags import EXITS_OF_SEVERAL, add, add_shared, new_parser
from nnssl.cli.run import entry, resumable
from nnssl.methods.registry import method_names

EPILOG = """more examples:
  nnssl_demo -o demo_pimpic -m pimpic  another method
  nnssl_demo -o demo3 -seeds 3         the seeds 0, 1 and 2, each with a pretraining: mean and deviation

The same command goes on with a demo that was interrupted. Output: report.md, dice.csv and comparison.png; everything
else in the folder is what the commands made, in nnU-Net's three folders.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    # fmt: off
    p = new_parser(
        "nnssl_demo", "nnssl_demo", EPILOG,
        "Draws torso CTs, pretrains on scans without labels, trains on few labels with nnU-Net's own commands, and "
        "compares with random weights. Prints each command before it runs it.",
        EXITS_OF_SEVERAL)
    add(p, "-m", required=False, default="vox2vec", metavar="METHOD", dest="method",
        help=f"method, one of {', '.join(method_names())}")
    add(p, "-o", default="demo", dest="folder")
    add(p, "-seeds", default=1)
    add_shared(p, "-device")
    # fmt: on
    return p


def _command(arguments: argparse.Namespace) -> None:
    from nnssl.demo import run_demo

    with resumable():
        run_demo(arguments.folder, arguments.method, range(arguments.seeds), arguments.device)


main = entry(parser, _command)
