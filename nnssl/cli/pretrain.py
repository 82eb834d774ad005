"""`nnssl_pretrain`: self-supervised pretraining on nnU-Net datasets."""

from __future__ import annotations

import argparse

from nnssl.cli.flags import RUN, add, add_shared, new_parser
from nnssl.cli.run import entry
from nnssl.core.signals import EXIT_INTERRUPTED
from nnssl.methods.registry import method_names

EPILOG = """more examples:
  nnssl_pretrain -d 500 501 -m vox2vec -p nnUNetResEncUNetLPlans
  nnssl_pretrain -d 500 -m vox2vec -p nnsslPlans_vox2vec    the paper's network, spacing, window, patch and batch
  nnssl_pretrain -d 500 -m vox2vec -p nnsslPlans_tiny -device cpu -set num_epochs=5 steps_per_epoch=20
  nnssl_pretrain -d 500 -m alice -p nnsslPlans_alice_12gb -alignment RUN
  nnssl_pretrain -d 500 -m vox2vec -probe 17                probe the features on a labelled dataset meanwhile
  nnssl_pretrain -d 500 -m vox2vec --c                      continue after an interruption
  torchrun --nproc_per_node 4 --nnodes 2 ... -m nnssl.cli.pretrain -d 500 -m vox2vec

Environment: nnssl_tensorboard=1 and nnUNet_wandb_enabled=1 (nnU-Net's own) log to TensorBoard and Weights & Biases too.
Prints the lines to type next, from nnssl_transfer to nnUNetv2_train; a finished run with --c prints them again.
Output: nnUNet_results/DatasetXXX_Name/nnssl_METHOD__PLANS__CONFIGURATION/fold_FOLD/
A second SIGTERM ends it at once; --c then goes on from the last saved epoch.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    # fmt: off
    p = new_parser(
        "nnssl_pretrain", "nnssl_pretrain -d 500 -m vox2vec", EPILOG,
        "Plans and preprocesses them where that is missing. Without further options the schedule is the paper's, and "
        "the network that of nnU-Net's own plans.",
        {EXIT_INTERRUPTED: "stopped by SIGTERM or SIGUSR1 after a saved step: type the same line with --c"})
    add(p, "-d", nargs="+", dest="dataset_ids",
        help="datasets, by number or name; plans and results folder are those of the first")
    add(p, "-m", metavar="METHOD", dest="method", help=f"method, one of {', '.join(method_names())}")
    add_shared(p, "-c", "-p")
    add(p, "-f", default="all",
        help="all: 5 %% of the cases are held out for the validation loss; a number: train on the training cases of "
             "that fold of splits_final.json")
    add(p, "-set", "-o",
        help="hyper-parameters of the method, such as num_epochs=100 steps_per_epoch=50 batch_size=4 "
             "patch_size=32,96,96 learning_rate=1e-4 seed=1; help=1 lists them all")
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
    add_shared(p, "-device", "-np")
    add(p, "-num_gpus", type=int, default=1, metavar="N",
        help="cards of this machine to train on, or processes with -device cpu")
    add_shared(p, "--c", "--overwrite", "--allow_other_intensities")
    # fmt: on
    return p


def _command(arguments: argparse.Namespace) -> None:
    from nnssl import pretrain

    pretrain(**vars(arguments))


main = entry(parser, _command, again="run it again with --c")

if __name__ == "__main__":
    main()
