"""`nnssl_benchmark`: the same test set after trainings with few and with many labels."""

from __future__ import annotations

import argparse

from nnssl.cli.flags import EXITS_OF_SEVERAL, RUN, add, add_shared, new_parser
from nnssl.cli.run import entry, resumable

EPILOG = f"""more examples:
  nnssl_benchmark -d 17 -p nnsslPlans_tiny -o bench -fractions 5 10 20 50 100 -seeds 3 \\
      -tr random=nnUNetTrainer_SSLLinearProbe,,random vox2vec=nnUNetTrainer_SSLLinearProbe,,RUN nnUNetTrainer
  ... --dry_run                 print the commands, with their environment
  ... -num_parts 4 -part_id 0   a quarter of the trainings, for one of four jobs
  ... --collect                 tables and plots of what is finished so far
  nnssl_benchmark -d 600 -target covid -m vox2vec=RUN random=random:RUN -o bench      labels of scans, frozen features

An item of -tr is TRAINER, or NAME=TRAINER,PLANS,RUN (RUN: {RUN}, or
`random`; empty for the default), and may end with settings of its own such as ,nnssl_initial_lr=1e-3. {{seed}} in RUN
is the number of the seed, from 0: vox2vec=TRAINER,,RUNS/seed_{{seed}}/FOLDER. Variables such as nnssl_num_epochs reach
all trainings. Subsets are nested, each seed has its own order of the cases, and the test set is the same for all. The
same command goes on where it was interrupted; you can add fractions, seeds and methods later. All files are in the
folder -o: results/ holds results.csv, results.md, results.tex, comparison.csv, labels.png and parameters.png.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    # fmt: off
    p = new_parser(
        "nnssl_benchmark",
        "nnssl_benchmark -d 17 -tr nnUNetTrainer_SSLScratch nnUNetTrainer_SSLFinetune -o bench", EPILOG,
        "Every training is by nnUNetv2_train, on nested subsets of the training cases of a preprocessed dataset.",
        EXITS_OF_SEVERAL)
    add(p, "-d", dest="dataset")
    what = p.add_mutually_exclusive_group(required=True)
    add(what, "-tr", nargs="+", metavar="ITEM", dest="trainers",
        help="what to compare: TRAINER, or NAME=TRAINER,PLANS,RUN")
    add(what, "-target", metavar="COLUMN",
        help="column of labels.csv, see nnssl_classify: linear heads on the frozen features of -m instead of trainings")
    add(p, "-m", required=False, nargs="+", metavar="RUN", dest="models",
        help=f"with -target: pretrainings to compare, as RUN ({RUN}), random:RUN or NAME=RUN")
    add(p, "-o", required=True)
    add_shared(p, "-c")
    add(p, "-p", help="plans of the items that name none")
    amount = p.add_mutually_exclusive_group()
    add(amount, "-fractions", nargs="+", type=float, metavar="PERCENT",
        help="percentages of the training cases (default: 5 10 20 50 100)")
    add(amount, "-cases", nargs="+", type=int, metavar="N", help="numbers of training cases instead")
    add(p, "-seeds", default=3)
    add(p, "-test", metavar="WHICH",
        help="labelsTs, fold_0, a percentage of the labelled cases, or 70/10/20 for PiMPiC's split (default: labelsTs "
             "if there is one, else 20)")
    add(p, "-baseline", metavar="NAME", help="method that the others are compared with (default: the first item)")
    add_shared(p, "-tolerance", "-absent")
    add(p, "-device", choices=("cuda", "cpu", "mps"))
    add_shared(p, "-np", "-num_parts", "-part_id")
    add(p, "--dry_run", action="store_true", help="print the commands that are left, run nothing")
    add(p, "--collect", action="store_true", dest="collect_only", help="only make tables and plots")
    # fmt: on
    return p


def _command(arguments: argparse.Namespace) -> None:
    from nnssl.core.errors import UserError

    given = vars(arguments)
    target, models = given.pop("target"), given.pop("models")
    if (target is None) != (models is None):
        raise UserError("-target and -m belong together: the column of labels.csv, and the pretrainings to compare")
    if target is not None:
        flags = {"cases": "-cases", "test": "-test", "baseline": "-baseline", "dry_run": "--dry_run",
                 "collect_only": "--collect"}  # fmt: skip
        if others := [flag for name, flag in flags.items() if given[name]]:
            raise UserError(f"{others[0]} is for trainings (-tr); leave it out with -target")
        from nnssl import benchmark_scan_labels

        benchmark_scan_labels(given["dataset"], models, given["output"], target, given["fractions"], given["seeds"],
                              given["device"])  # fmt: skip
        return
    from nnssl import benchmark

    with resumable():
        benchmark(**given)


main = entry(parser, _command)
