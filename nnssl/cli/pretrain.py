"""`nnssl_pretrain`: self-supervised pretraining on nnU-Net datasets."""

from __future__ import annotations

import argparse

from nnssl.cli.flags import RUN, add, add_shared, new_parser
from nnssl.cli.run import entry
from nnssl.methods.registry import method_names

EPILOG = """examples:
  nnssl_pretrain -d 500 -m vox2vec                          the paper's schedule on the plans' own network
  nnssl_pretrain -d 500 501 -m vox2vec -p nnUNetResEncUNetLPlans
  nnssl_pretrain -d 500 -m vox2vec -p nnsslPlans_vox2vec    the paper's network, spacing, window, patch and batch
  nnssl_pretrain -d 500 -m vox2vec -p nnsslPlans_tiny -device cpu -o num_epochs=5 steps_per_epoch=20
  nnssl_pretrain -d 500 -m alice -p nnsslPlans_alice_12gb -alignment RUN
  nnssl_pretrain -d 500 -m vox2vec -probe 17                probe the features on a labelled dataset meanwhile
  nnssl_pretrain -d 500 -m vox2vec --c                      continue after an interruption
  torchrun --nproc_per_node 4 --nnodes 2 ... -m nnssl.cli.pretrain -d 500 -m vox2vec

Environment: nnssl_tensorboard=1 and nnUNet_wandb_enabled=1 (nnU-Net's own) log to TensorBoard and Weights & Biases too
Prints the lines to type next, from nnssl_transfer to nnUNetv2_train; a finished run with --c prints them again.
Output: nnUNet_results/DatasetXXX_Name/nnssl_METHOD__PLANS__CONFIGURATION/fold_FOLD/
Exit code: 0 finished, 1 an error (said in one sentence), 75 interrupted by SIGTERM or SIGUSR1 after a saved step, or
before the first: run again with --c. A second SIGTERM ends it at once; --c then goes on from the last saved epoch.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    # fmt: off
    p = new_parser(
        "nnssl_pretrain",
        "Self-supervised pretraining on nnU-Net datasets, with or without labels. Plans and preprocesses them where\n"
        "that is missing.", EPILOG)
    add(p, "-d", nargs="+", dest="dataset_ids",
        help="datasets, by number or name; plans and results folder are those of the first")
    add(p, "-m", metavar="METHOD", dest="method", help=f"method, one of {', '.join(method_names())}")
    add(p, "-c", help="3D configuration of the plans")
    add(p, "-p", help="plans, or a preset such as nnsslPlans_vox2vec")
    add(p, "-f", default="all",
        help="all: 5 %% of the cases are held out for the validation loss; a number: train on the training cases of "
             "that fold of splits_final.json")
    add_shared(p, "-device")
    add(p, "-num_gpus", type=int, default=1, metavar="N", help="processes on this machine, with -device cpu too")
    add(p, "--c", action="store_true", dest="continue_run", help="continue an interrupted run")
    add(p, "--overwrite", action="store_true", help="replace an earlier run")
    add(p, "-o", nargs="+", default=[], metavar="KEY=VALUE", dest="options",
        help="hyper-parameters of the method, such as num_epochs=100 steps_per_epoch=50 batch_size=4 "
             "patch_size=32,96,96 learning_rate=1e-4 seed=1; an unknown key lists them all")
    add(p, "-pretrained", metavar="RUN", help=f"start from the weights of another pretraining: {RUN}, also of "
        "nnU-Net's own trainings")
    add(p, "-alignment", metavar="RUN",
        help="for alice: the lapn or sam pretraining that finds the same place in other volumes "
             f"({RUN}), or position for the same relative position in the body (default: the "
             "only finished such pretraining of the datasets)")
    add(p, "-probe", metavar="ID",
        help="labelled dataset: during the run, heads on the frozen features learn to segment it, and their Dice on "
             "held-out cases goes to the log, metrics.jsonl and progress.png; the best checkpoint is kept as "
             "checkpoint_best.pth")
    add(p, "-probe_every", type=int, metavar="EPOCHS",
        help="epochs from one Dice to the next (default: at most 20 in the run, as its cost allows)")
    add_shared(p, "--allow_other_intensities", "-np")
    # fmt: on
    return p


def _command(arguments: argparse.Namespace) -> None:
    from nnssl import pretrain

    pretrain(**vars(arguments))


main = entry(parser, _command, again="run it again with --c")

if __name__ == "__main__":
    main()
