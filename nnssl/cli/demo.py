"""`nnssl_demo`: the whole job on data that it draws, command by command."""

from __future__ import annotations

import argparse
import logging
import signal

from nnssl.cli.run import run
from nnssl.methods.registry import method_names

EPILOG = """examples:
  nnssl_demo                    some ten minutes on two CPU cores
  nnssl_demo -o demo3 -seeds 3  a pretraining and two probes for each of the seeds 0, 1 and 2: mean and deviation

The same command goes on with a demo that was interrupted. Output: report.md, dice.csv and comparison.png; everything
else in the folder is what the commands made, in nnU-Net's three folders.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments; nnU-Net's flags where nnU-Net has one."""
    # fmt: off
    p = argparse.ArgumentParser(
        "nnssl_demo",
        description="Draw torso CTs, pretrain on scans without labels, train a linear head with few labels by\n"
        "nnU-Net's own commands, and compare with random weights. Prints each command before it runs it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("-o", default="demo", metavar="FOLDER", dest="folder", help="where everything goes (default: demo)")
    p.add_argument("-m", default="vox2vec", metavar="METHOD", dest="method",
                   help=f"{', '.join(method_names())} (default: vox2vec)")
    p.add_argument("-seeds", type=int, default=1, metavar="N", help="how many pretrainings and probes (default: 1)")
    p.add_argument("-device", default="cpu", choices=("cpu", "cuda"), help="cpu or cuda (default: cpu)")
    # fmt: on
    return p


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    run(_command, argv)


def _command(argv: list[str] | None) -> int:
    arguments = parser().parse_args(argv)
    # Only now: --help answers without waiting for numpy.
    from nnssl.demo import run_demo

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the running command is ended too
    try:
        run_demo(arguments.folder, arguments.method, range(arguments.seeds), arguments.device)
    except KeyboardInterrupt:
        logging.getLogger("nnssl").info("the same command goes on with what is left to do")
        raise
    return 0


if __name__ == "__main__":
    main()
