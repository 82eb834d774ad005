"""`nnssl_benchmark`: the same test set after trainings with few and with many labels."""

from __future__ import annotations

import argparse
import logging
import signal

from nnssl.cli.run import run

EPILOG = """examples:
  nnssl_benchmark -d 17 -c 3d_fullres -p nnsslPlans_tiny -o bench -fractions 5 10 20 50 100 -seeds 3 \\
      -tr random=nnUNetTrainer_SSLLinearProbe,,random vox2vec=nnUNetTrainer_SSLLinearProbe,,RUN nnUNetTrainer
  ... --dry_run                 the commands, with their environment
  ... -num_parts 4 -part_id 0   a quarter of the trainings, for one of four jobs
  ... --collect                 tables and plots of what is finished so far

An item of -tr is TRAINER, or NAME=TRAINER,PLANS,CHECKPOINT (CHECKPOINT: a file, a run's folder or `random`; empty for
the default), and may end with settings of its own such as ,nnssl_initial_lr=1e-3. Variables such as nnssl_num_epochs
reach all trainings. Subsets are nested; the test set is the same for all; the same command goes on where it was cut
off. More fractions, seeds or methods can be added later. Everything lies below the folder -o: results/ holds
results.csv, results.md, results.tex, comparison.csv, labels.png and parameters.png.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments; nnU-Net's flags where nnU-Net has one."""
    # fmt: off
    p = argparse.ArgumentParser(
        "nnssl_benchmark",
        description="Train with nnUNetv2_train on nested subsets of the training cases, and compare on one test set.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("-d", required=True, metavar="DATASET", dest="dataset", help="id or name, preprocessed already")
    p.add_argument("-tr", required=True, nargs="+", metavar="ITEM", dest="trainers", help="methods; see below")
    p.add_argument("-o", required=True, metavar="FOLDER", dest="output", help="where everything goes")
    p.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION", dest="configuration",
                   help="configuration (default: 3d_fullres)")
    p.add_argument("-p", default="nnUNetPlans", metavar="PLANS", dest="plans",
                   help="plans of the items that name none (default: nnUNetPlans)")
    amount = p.add_mutually_exclusive_group()
    amount.add_argument("-fractions", nargs="+", type=float, metavar="PERCENT",
                        help="of the training cases (default: 5 10 20 50 100)")
    amount.add_argument("-cases", nargs="+", type=int, metavar="N", help="numbers of training cases instead")
    p.add_argument("-seeds", type=int, default=3, metavar="N", help="orders of the training cases (default: 3)")
    p.add_argument("-test", metavar="WHICH",
                   help="labelsTs, fold_0, or a percentage of the labelled cases (default: labelsTs if there, else 20)")
    p.add_argument("-baseline", metavar="NAME", help="what the others are compared with (default: the first item)")
    p.add_argument("-device", default="cuda", choices=("cuda", "cpu", "mps"), help="of the trainings (default: cuda)")
    p.add_argument("-tolerance", nargs="+", default=[], metavar="MM",
                   help="of the surfaces in mm: one number for all (default: 2), NAME=MM for single structures")
    p.add_argument("-absent", choices=("flare", "exclude"), default="flare",
                   help="a structure in neither label file: 1 (flare, default), or left out of the means (exclude)")
    p.add_argument("-num_parts", type=int, default=1, metavar="N", help="jobs that share the work (default: 1)")
    p.add_argument("-part_id", type=int, default=0, metavar="I", help="which of them this one is, from 0")
    p.add_argument("-np", type=int, default=1, metavar="N", dest="num_processes", help="processes that score")
    p.add_argument("--dry_run", action="store_true", help="print the commands that are left and run nothing")
    p.add_argument("--collect", action="store_true", dest="collect_only", help="only make tables and plots")
    # fmt: on
    return p


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    run(_command, argv)


def _command(argv: list[str] | None) -> None:
    arguments = parser().parse_args(argv)
    # Only now: --help answers without waiting for torch and nnU-Net.
    from nnssl import benchmark

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the running training is ended too
    try:
        benchmark(**vars(arguments))
    except KeyboardInterrupt:
        logging.getLogger("nnssl").info("the same command goes on with what is left to do")
        raise


if __name__ == "__main__":
    main()
