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
  ... --finetune                both on frozen features and fine-tuned

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
    add(p, "--finetune", action="store_true", help="with -target: fine-tune the networks too, with nnssl_classify")
    add(p, "-o", required=True)
    add_shared(p, "-c")
    add(p, "-p", help="plans of the items that name none")
    amount = p.add_mutually_exclusive_group()
    add(amount, "-fractions", nargs="+", type=float, metavar="PERCENT",
        help="percentages of the training cases (default: 5 10 20 50 100)")
    add(amount, "-cases", nargs="+", type=int, metavar="N", help="numbers of training cases instead")
    add(p, "-set", help="with --finetune: options of the training, as of nnssl_classify, such as num_epochs=50")
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


_TYPED = {"target": "-target", "finetune": "--finetune", "options": "-set", "dry_run": "--dry_run",
          "collect_only": "--collect"}  # fmt: skip


def _command(arguments: argparse.Namespace) -> None:
    from nnssl import benchmark, benchmark_scan_labels
    from nnssl.core.errors import UserError

    given = vars(arguments)
    scans = {name: given.pop(name) for name in ("target", "models", "finetune", "options")}
    if (scans["target"] is None) != (scans["models"] is None):
        raise UserError("-target and -m belong together: the column of labels.csv, and the pretrainings to compare")
    for needed, flag in (("target", "finetune"), ("finetune", "options")):
        if scans[flag] and not scans[needed]:
            raise UserError(f"{_TYPED[flag]} belongs to {_TYPED[needed]}; add that, or leave it out")
    with resumable():
        if scans["target"] is None:
            benchmark(**given)
            return
        shared = ("dataset", "output", "fractions", "seeds", "device", "num_parts", "part_id", "dry_run",
                  "collect_only")  # fmt: skip
        never = ["cases", "test", "baseline"]
        tuned = ["dry_run", "collect_only", *["num_parts"] * (given["num_parts"] > 1)]
        if others := [name for name in (*never, *tuned * (not scans["finetune"])) if given[name]]:
            fix = "leave it out" if others[0] in never else "leave it out, or add --finetune"
            raise UserError(f"{_TYPED.get(others[0], f'-{others[0]}')} is for trainings; with -target {fix}")
        benchmark_scan_labels(**scans, **{name: given[name] for name in shared})


main = entry(parser, _command)
