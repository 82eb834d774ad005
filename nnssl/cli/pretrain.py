"""`nnssl_pretrain`: self-supervised pretraining on nnU-Net datasets."""

from __future__ import annotations

import argparse

from nnssl.cli.run import ALLOW_HELP, run
from nnssl.methods.registry import method_names

EPILOG = """examples:
  nnssl_pretrain -d 500 -m vox2vec                          the paper's schedule on the plans' own network
  nnssl_pretrain -d 500 501 -m vox2vec -p nnUNetResEncUNetLPlans
  nnssl_pretrain -d 500 -m vox2vec -p nnsslPlans_vox2vec    the paper's network, spacing, window, patch and batch
  nnssl_pretrain -d 500 -m vox2vec -p nnsslPlans_tiny -device cpu -o num_epochs=5 steps_per_epoch=20
  nnssl_pretrain -d 500 -m alice -p nnsslPlans_alice_12gb -alignment RUN/fold_all/checkpoint_final.pth
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
    """The command's arguments; nnU-Net's flags where nnU-Net has one."""
    # fmt: off
    p = argparse.ArgumentParser(
        "nnssl_pretrain",
        description="Self-supervised pretraining on nnU-Net datasets, with or without labels. Plans and preprocesses "
        "by itself where that is missing.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("-d", nargs="+", required=True, metavar="ID", dest="dataset_ids",
                   help="dataset ids; plans and results folder are those of the first")
    p.add_argument("-m", required=True, metavar="METHOD", dest="method", help=", ".join(method_names()))
    p.add_argument("-c", default="3d_fullres", metavar="CONFIGURATION", dest="configuration",
                   help="a 3D configuration of the plans (default: 3d_fullres)")
    p.add_argument("-p", default="nnUNetPlans", metavar="PLANS", dest="plans",
                   help="plans, or a preset such as nnsslPlans_vox2vec (default: nnUNetPlans)")
    p.add_argument("-f", default="all", metavar="FOLD", dest="fold",
                   help="all: 5 %% of the cases are held out for the validation loss; a number: train on the "
                        "training cases of that fold of splits_final.json (default: all)")
    p.add_argument("-device", default="cuda", help="cuda or cpu (default: cuda)")
    p.add_argument("-num_gpus", type=int, default=1, metavar="N",
                   help="processes on this machine, with -device cpu too (default: 1)")
    p.add_argument("--c", action="store_true", dest="continue_run", help="continue an interrupted run")
    p.add_argument("--overwrite", action="store_true", help="replace an earlier run")
    p.add_argument("-o", nargs="+", default=[], metavar="KEY=VALUE", dest="options",
                   help="hyper-parameters of the method, such as num_epochs=100 steps_per_epoch=50 batch_size=4 "
                        "patch_size=32,96,96 learning_rate=1e-4 seed=1; an unknown key lists them all")
    p.add_argument("-pretrained", metavar="CHECKPOINT", help="start from the weights of another run")
    p.add_argument("-alignment", metavar="CHECKPOINT",
                   help="for alice: the lapn or sam pretraining that finds the same place in other volumes, or "
                        "position for the same relative position in the body (default: the only finished such "
                        "pretraining of the datasets)")
    p.add_argument("-probe", metavar="ID",
                   help="a labelled dataset: while the run goes on, heads on the frozen features learn to segment it, "
                        "and their Dice on held-out cases goes to the log, metrics.jsonl and progress.png; the best "
                        "checkpoint is kept as checkpoint_best.pth")
    p.add_argument("-probe_every", type=int, metavar="EPOCHS",
                   help="epochs from one Dice to the next (default: at most 20 in the run, as its cost allows)")
    p.add_argument("--allow_other_intensities", action="store_true", help=ALLOW_HELP)
    p.add_argument("-np", type=int, default=None, metavar="N", dest="num_processes",
                   help="processes for preprocessing, where that is still to do (default: nnU-Net's)")
    # fmt: on
    return p


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    run(_command, argv, again="run it again with --c")


def _command(argv: list[str] | None) -> None:
    arguments = parser().parse_args(argv)
    # Only now: --help answers without waiting for torch and nnU-Net.
    from nnssl import pretrain

    pretrain(**vars(arguments))


if __name__ == "__main__":
    main()
