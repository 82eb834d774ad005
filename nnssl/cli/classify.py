"""`nnssl_classify`: a label for each scan, by the features of a pretraining."""

from __future__ import annotations

import argparse

from nnssl.cli.flags import add, add_shared, new_parser
from nnssl.cli.run import entry

EPILOG = """examples:
  nnssl_classify -d 600 -m RUN -target covid                 on frozen features, in seconds
  nnssl_classify -d 600 -m random:RUN -target covid          the same network with random weights
  nnssl_classify -d 600 -m RUN -target covid --finetune      train the encoder too; --c goes on after an interruption
  nnssl_classify -d 600 -m random -p nnUNetPlans -target covid --finetune
  nnssl_classify_predict -i IMAGES -o OUT.csv -m MODEL       new images

The dataset has nnU-Net's imagesTr and dataset.json, and labels.csv beside them: a column case, one or more targets,
and perhaps group, whose cases stay together (such as those of a patient). Names are classes, numbers a regression;
empty cells are cases without a value. Folds are those of splits_final.json, or stratified ones in splits_TARGET.json.
MODEL is the folder that is printed, with results.md, results.json, results.csv, results.png and predictions.csv.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    # fmt: off
    p = new_parser("nnssl_classify", "Classification and regression of scans by a pretrained backbone.", EPILOG)
    add(p, "-d", dest="dataset")
    add_shared(p, "-m")
    add(p, "-target", help="column of labels.csv (default: the only one)")
    add(p, "-task", choices=("classification", "regression"),
        help="in place of what the values say: names are classes, numbers are a regression unless there are only two "
             "whole ones")
    add(p, "--finetune", action="store_true",
        help="train the whole encoder in every fold; a fifth of its training cases tells when to stop")
    add(p, "-folds", type=int, default=5, metavar="N", help="folds to make where there is no splits_final.json")
    add(p, "-o", metavar="OUT", dest="output", help="folder to write to (default: one in nnUNet_results)")
    add(p, "-seed", type=int, default=0, metavar="N", help="of folds that are made, and of the fine-tuning")
    add_shared(p, "-device")
    add(p, "--overwrite", action="store_true", help="replace a fine-tuning; otherwise make the vectors again")
    add_shared(p, "--allow_other_intensities")
    tuned = p.add_argument_group("with --finetune")
    add(tuned, "-f", type=int, nargs="+", metavar="FOLD", help="folds to train, in this job (default: all)")
    add(tuned, "--c", action="store_true", dest="continue_run",
        help="continue an interrupted run; finished folds stay as they are")
    add(tuned, "-set", nargs="+", default=[], metavar="KEY=VALUE", dest="options",
        help="options of the training, such as num_epochs=50 batch_size=4 patch_size=32,96,96 learning_rate=1e-4 "
             "class_weights=true flip_probability=0.5; an unknown key lists them all")
    add(tuned, "-memory", type=float, metavar="GIB",
        help="that a step of whole volumes may take; beyond it, crops of the pretraining's patch size (default: 0.9 of "
             "the card, or half of the machine's memory)")
    add(tuned, "-p", default=None, help="plans, or a preset, for -m random")
    add(tuned, "-c", help="configuration of these plans")
    add_shared(tuned, "-np")
    # fmt: on
    return p


def _command(arguments: argparse.Namespace) -> None:
    from nnssl import classify
    from nnssl.data.next_lines import Way, rendered

    print(rendered([Way(classify(**vars(arguments)).next)]))


main = entry(parser, _command, again="run it again, with --c for a fine-tuning")

if __name__ == "__main__":
    main()
