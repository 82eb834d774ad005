"""The flags that several commands share, each with one meaning; nnU-Net's flags where nnU-Net has one."""

from __future__ import annotations

import argparse
from typing import Any

from nnssl.cli.parser import WRONG_LINE, Parser
from nnssl.cli.table import OURS
from nnssl.core.signals import EXIT_INTERRUPTED

RUN = "a run's folder, its fold's folder or a checkpoint"  # see nnssl.checkpoints.runs.checkpoint_of
IMAGES = "dataset (number or name), folder of images named like case_0000.nii.gz, or one image"
# Lines that work as they stand, on the folders of the walk.
EXAMPLE_RUN = "$nnUNet_results/Dataset500_Thorax/nnssl_vox2vec__nnUNetPlans__3d_fullres"
EXAMPLE_IMAGES = "$nnUNet_raw/Dataset017_Organs/imagesTs"
EXAMPLE_MODEL = "$nnUNet_results/Dataset017_Organs/nnUNetTrainer__nnUNetPlans__3d_fullres"
LEFT_OUT = 3  # exit code: done, but some volumes or images were left out
KEYBOARD = 130  # exit code: 128 + SIGINT, as shells have it
AGAIN = "what is done is kept: type the same line again"
EXITS = {0: "done", 1: "an error", WRONG_LINE: "a mistake in the options",
         EXIT_INTERRUPTED: f"stopped by SIGTERM or SIGUSR1, {AGAIN}", KEYBOARD: "stopped by Ctrl-C"}  # fmt: skip
EXITS_OF_SEVERAL = {EXIT_INTERRUPTED: "stopped by SIGUSR1", KEYBOARD: f"stopped by Ctrl-C or SIGTERM, {AGAIN}"}
IMAGES_LEFT_OUT = {LEFT_OUT: "done, but images that cannot be used were left out"}
VOLUMES_LEFT_OUT = {LEFT_OUT: "done, but some volumes were left out: named at the end, and in <plans>_left_out.json "
                              "beside the plans"}  # fmt: skip
ONNX_EXTRA = "Needs the extra: pip install onnx onnxscript onnxruntime psutil"

# In the order in which every help lists them.
SHARED: dict[str, dict[str, Any]] = {
    "-d": {"required": True, "metavar": "ID", "help": "dataset, by number or name"},
    "-m": {"required": True, "metavar": "RUN", "dest": "model",
           "help": f"pretraining: {RUN}, also of nnU-Net's own trainings; random:RUN is the same network with "
                   "random weights"},
    "-i": {"required": True, "metavar": "IMAGES", "help": "folder of images named like case_0000.nii.gz"},
    "-k": {"metavar": "IMAGE", "help": "raw image to search"},
    "--voxel": {"action": "store_true", "help": "points are in voxels of the file; the first one is 0 0 0"},
    "--ras": {"action": "store_true", "help": "millimetres are RAS instead of LPS, given and printed"},
    "-o": {"metavar": "FOLDER", "dest": "output", "help": "folder to write to"},
    "-c": {"default": "3d_fullres", "metavar": "CONFIGURATION", "dest": "configuration",
           "help": "configuration of the plans"},
    "-p": {"default": "nnUNetPlans", "metavar": "PLANS", "dest": "plans",
           "help": "name of the plans, or a preset such as nnsslPlans_vox2vec"},
    "-f": {"metavar": "FOLD", "dest": "fold", "help": "fold, a number or all"},
    "-chk": {"default": "checkpoint_final.pth", "metavar": "FILE", "dest": "checkpoint",
             "help": "name of the checkpoint in a model folder"},
    "-set": {"nargs": "+", "default": [], "metavar": "KEY=VALUE", "dest": "options"},
    "-level": {"type": int, "metavar": "L",
               "help": "level of the feature pyramid, 0 is the finest (default: all; in figures of lapn and sam their "
                       "encodings)"},
    "-license": {"metavar": "LICENSE", "dest": "licence",
                 "help": "licence of the weights, such as apache-2.0, cc-by-4.0 or cc-by-nc-4.0 (default: the one that "
                         "is known for these weights)"},
    "-seed": {"type": int, "default": 0, "metavar": "N", "help": "seed of what is drawn at random"},
    "-seeds": {"type": int, "metavar": "N", "help": "repetitions, each with a seed of its own: 0, 1, ..."},
    "-tolerance": {"nargs": "+", "default": [], "metavar": "MM",
                   "help": "tolerance of the surface Dice in mm: one number for all (default: 2), NAME=MM for single "
                           "structures"},
    "-absent": {"choices": ("flare", "exclude"), "default": "flare",
                "help": "a structure that is in neither label file scores 1 (flare), or does not count (exclude)"},
    "-step_size": {"type": float, "default": 0.5, "metavar": "X",
                   "help": "step of the sliding window, as a fraction of the patch"},
    "-overwrite_plans_name": {"metavar": "NAME", "help": "another name for the new plans"},
    "-device": {"choices": ("cuda", "cpu"),
                "help": "where to compute (default: cuda where PyTorch sees a card, else cpu)"},
    "-np": {"type": int, "metavar": "N", "dest": "num_processes",
            "help": "processes (default: nnU-Net's 8, at most one per core)"},
    "-num_parts": {"type": int, "default": 1, "metavar": "N", "help": "number of jobs that share the work"},
    "-part_id": {"type": int, "default": 0, "metavar": "I", "help": "which of these jobs this one is, from 0"},
    "-threads": {"type": int, "default": 0, "metavar": "N", "help": "threads of the network; 0 is one per core"},
    "--disable_tta": {"action": "store_true", "help": "do not mirror: faster, less accurate"},
    "--c": {"action": "store_true", "dest": "continue_run",
            "help": "continue an interrupted run; what is finished is kept"},
    "--overwrite": {"action": "store_true", "help": "replace what an earlier call has written"},
    "--overwrite_plans": {"action": "store_true",
                          "help": "replace plans of that name, and volumes that do not fit the new ones"},
    "--overwrite_volumes": {"action": "store_true", "help": "prepare all volumes again"},
    "--allow_other_intensities": {"action": "store_true",
                                  "help": "take images of another modality than the pretraining's or the first "
                                          "dataset's, such as CT after MR"},
    "--no_pbar": {"action": "store_true", "help": "no progress bar (there is none without a terminal)"},
    "--verbose": {"action": "store_true", "help": "also print what nnU-Net's functions print"},
}  # fmt: skip
ORDER = tuple(SHARED)


def new_parser(
    name: str, example: str, epilog: str = "", about: str = "", exits: dict[int, str] | None = None
) -> Parser:
    """The parser of a command.

    Args:
        name: of the command, in the table of commands.
        example: a line that works as it stands on the usual folders; the help begins with it.
        epilog: the end of the help, which keeps its lines.
        about: more on what the command does, after what the table says.
        exits: exit codes that mean something else than usual, or that others do not have.
    """
    does = OURS[name].does
    said = f"{does[0].upper()}{does[1:]}.{' ' if about else ''}{about}"
    return Parser(name, example, said, EXITS | (exits or {}), epilog=epilog)


def add(p: argparse._ActionsContainer, *names: str, **options: Any) -> None:
    """Add a flag: a shared one by its first name, where `options` replace single entries, or one of the command's own.

    The help says the default, where there is one.
    """
    options = SHARED.get(names[0], {}) | options
    default = options.get("default")
    if default not in (None, []) and "(default" not in options["help"]:
        options["help"] += f" (default: {default})"
    p.add_argument(*names, **options)


def add_point(p: argparse._ActionsContainer, said: str, **options: Any) -> None:
    """Add -point, also called -p in commands that take no plans, with its units."""
    point = {"metavar": ("X", "Y", "Z"), "dest": "point", "nargs": 3, "type": float, "help": said}
    add(p, "-point", "-p", **point | options)
    add_shared(p, "--voxel", "--ras")


def add_shared(p: argparse._ActionsContainer, *names: str) -> None:
    """Add shared flags as they are."""
    for name in names:
        add(p, name)
