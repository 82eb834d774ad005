"""`nnssl_demo`: the whole job on phantom CTs, command by command."""

from __future__ import annotations

import argparse

from nnssl.cli.flags import add, add_shared, new_parser
from nnssl.cli.run import entry, resumable
from nnssl.methods.registry import method_names

EPILOG = """examples:
  nnssl_demo                    about ten minutes on two CPU cores
  nnssl_demo -o demo3 -seeds 3  a pretraining and two probes for each of the seeds 0, 1 and 2: mean and deviation

The same command goes on with a demo that was interrupted. Output: report.md, dice.csv and comparison.png; everything
else in the folder is what the commands made, in nnU-Net's three folders.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    # fmt: off
    p = new_parser(
        "nnssl_demo",
        "Draw torso CTs, pretrain on scans without labels, train a linear head on few labels with nnU-Net's\n"
        "own commands, and compare with random weights. Prints each command before it runs it.", EPILOG)
    add(p, "-o", default="demo", metavar="FOLDER", dest="folder", help="folder for all files")
    add(p, "-m", required=False, default="vox2vec", metavar="METHOD", dest="method",
        help=f"method, one of {', '.join(method_names())}")
    add(p, "-seeds", type=int, default=1, metavar="N", help="number of pretrainings, each with two probes")
    add_shared(p, "-device")
    # fmt: on
    return p


def _command(arguments: argparse.Namespace) -> None:
    from nnssl.demo import run_demo

    with resumable():
        run_demo(arguments.folder, arguments.method, range(arguments.seeds), arguments.device)


main = entry(parser, _command)
