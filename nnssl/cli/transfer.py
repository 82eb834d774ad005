"""`nnssl_transfer`: plans and volumes of a labelled dataset that a pretraining's weights fit exactly."""

from __future__ import annotations

import argparse

from nnssl.cli.run import ALLOW_HELP, LEFT_OUT, run
from nnssl.methods.registry import method_names

EPILOG = """examples:
  nnssl_transfer -s 500 -t 17                the only finished pretraining of 500
  nnssl_transfer -s 500 -t 17 -m vox2vec     where there are several
  nnssl_transfer -s 500 -t 17 -m random      the baseline: the same network and volumes, random weights

Prints the nnUNetv2_train lines to type next. Exit codes: 0 all volumes are ready, 1 an error (said in one sentence), 3
some volumes were left out (named at the end, and in <plans>_left_out.json beside the plans), 75 stopped by SIGTERM or
SIGUSR1: what is done is kept, run the same line again.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments; nnU-Net's flags where nnU-Net has one."""
    # fmt: off
    p = argparse.ArgumentParser(
        "nnssl_transfer",
        description="Plan and preprocess a labelled dataset with the spacing, intensities and network of a finished "
        "pretraining. The new plans name its checkpoint.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("-s", required=True, metavar="ID", dest="source", help="dataset of the pretraining")
    p.add_argument("-t", required=True, metavar="ID", dest="target", help="labelled dataset")
    p.add_argument("-m", metavar="METHOD", dest="method",
                   help=f"method of the pretraining ({', '.join(method_names())}), or random for the baseline "
                        "(random:METHOD where pretrainings differ in their network)")
    p.add_argument("-c", metavar="CONFIGURATION", dest="configuration", help="of the pretraining")
    p.add_argument("-p", metavar="PLANS", dest="plans", help="plans of the pretraining")
    p.add_argument("-f", metavar="FOLD", dest="fold", help="fold of the pretraining, all or a number")
    p.add_argument("-np", type=int, metavar="N", dest="num_processes",
                   help="processes; default: nnU-Net's (8), at most one a core")
    p.add_argument("-overwrite_plans_name", metavar="NAME",
                   help="another name for the new plans (default: <plans>From<ID>_<METHOD>)")
    p.add_argument("--overwrite_plans", action="store_true",
                   help="replace plans of that name, and volumes that do not fit the new ones")
    p.add_argument("--overwrite_volumes", action="store_true", help="prepare all volumes anew")
    p.add_argument("--allow_other_intensities", action="store_true", help=ALLOW_HELP)
    # fmt: on
    return p


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    run(_command, argv)


def _command(argv: list[str] | None) -> int:
    arguments = parser().parse_args(argv)
    # Only now: --help answers without waiting for torch and nnU-Net.
    from nnssl import transfer

    return LEFT_OUT if transfer(**vars(arguments)).prepared.left_out else 0


if __name__ == "__main__":
    main()
