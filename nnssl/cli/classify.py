"""`nnssl_classify`: a label for each scan, by the features of a pretraining."""

from __future__ import annotations

import argparse

from nnssl.cli.flags import EXAMPLE_RUN, EXITS, add, add_shared, new_parser
from nnssl.cli.run import entry
from nnssl.core.signals import EXIT_INTERRUPTED

EPILOG = """more examples:
  nnssl_classify -d 600 -m RUN -target covid                 a column of several in labels.csv
  nnssl_classify -d 600 -m random:RUN -target covid          the same network with random weights
  nnssl_classify -d 600 -m RUN -target covid --finetune      train the encoder too; --c goes on after an interruption
  nnssl_classify -d 600 -m random -p nnUNetPlans -target covid --finetune
  nnssl_classify_predict -i IMAGES -m MODEL -o covid.csv     new images

The dataset has nnU-Net's imagesTr and dataset.json, and labels.csv beside them: a column case, one or more targets,
and perhaps group, whose cases stay together (such as those of a patient). Names are classes, numbers a regression;
empty cells are cases without a value. Folds are those of splits_final.json, or stratified ones in splits_TARGET.json.
MODEL is the folder that is printed, with results.md, results.json, results.csv, results.png and predictions.csv.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    # fmt: off
    p = new_parser(
        "nnssl_classify", f"nnssl_classify -d 600 -m {EXAMPLE_RUN}", EPILOG,
        "A head on frozen features takes seconds; --finetune trains the whole encoder.",
        {EXIT_INTERRUPTED: f"{EXITS[EXIT_INTERRUPTED]}, with --c for a fine-tuning"})
    add(p, "-d", dest="dataset")
    add_shared(p, "-m")
    add(p, "-o", help="folder to write to (default: one in nnUNet_results)")
    add(p, "-target", metavar="COLUMN", help="column of labels.csv (default: the only one)")
    add(p, "-task", choices=("classification", "regression"),
        help="in place of what the values say: names are classes, numbers are a regression unless there are only two "
             "whole ones")
    add(p, "-folds", type=int, default=5, metavar="N", help="folds to make where there is no splits_final.json")
    add_shared(p, "-seed", "-device")
    add(p, "--finetune", action="store_true",
        help="train the whole encoder in every fold; a fifth of its training cases tells when to stop")
    add(p, "-splits", metavar="FILE", help="folds of your own, as in splits_final.json, in place of these")
    add_shared(p, "--overwrite", "--allow_other_intensities")
    tuned = p.add_argument_group("with --finetune")
    add(tuned, "-c", help="configuration of the plans, for -m random")
    add(tuned, "-p", default=None, help="name of the plans, or a preset such as nnsslPlans_vox2vec, for -m random")
    add(tuned, "-f", type=int, nargs="+", help="folds to train, in this job (default: all)")
    add(tuned, "-set",
        help="options of the training, such as num_epochs=50 batch_size=4 patch_size=32,96,96 learning_rate=1e-4 "
             "class_weights=true flip_probability=0.5; help=1 lists them all")
    add(tuned, "-memory", type=float, metavar="GIB",
        help="memory that a step of whole volumes may take; beyond it, crops of the pretraining's patch size (default: "
             "0.9 of the card, or half of the machine's memory)")
    add_shared(tuned, "-np", "--c")
    # fmt: on
    return p


def _command(arguments: argparse.Namespace) -> None:
    from nnssl import classify
    from nnssl.data.next_lines import Way, rendered

    print(rendered([Way(classify(**vars(arguments)).next)]))


main = entry(parser, _command, again="run it again, with --c for a fine-tuning")

if __name__ == "__main__":
    main()
