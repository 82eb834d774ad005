"""The flags that several commands share, each with one meaning; nnU-Net's flags where nnU-Net has one."""

from __future__ import annotations

import argparse
from typing import Any

RUN = "a run's folder, its fold's folder or a checkpoint"  # see nnssl.checkpoints.runs.checkpoint_of
# Texts for the end of a help.
IMAGES_LEFT_OUT = "Exit code 3: done, but images that cannot be used were left out."
VOLUMES_LEFT_OUT = """Exit code: 0 all volumes are ready, 1 an error (said in one sentence), 3 some volumes were
left out (named at the end, and in <plans>_left_out.json beside the plans), 75 stopped by SIGTERM or SIGUSR1: what is
done is kept, run the same line again."""
ONNX_EXTRA = "Needs the extra: pip install onnx onnxscript onnxruntime psutil"

_SHARED: dict[str, dict[str, Any]] = {
    "-d": {"required": True, "metavar": "ID", "help": "dataset, by number or name"},
    "-c": {"default": "3d_fullres", "metavar": "CONFIGURATION", "dest": "configuration",
           "help": "configuration of the plans"},
    "-p": {"default": "nnUNetPlans", "metavar": "PLANS", "dest": "plans", "help": "plans"},
    "-f": {"metavar": "FOLD", "dest": "fold", "help": "fold, a number or all"},
    "-m": {"required": True, "metavar": "RUN", "dest": "model",
           "help": f"pretraining: {RUN}, also of nnU-Net's own trainings; random:RUN is the same network with "
                   "random weights"},
    "-device": {"choices": ("cuda", "cpu"),
                "help": "where to compute (default: cuda where PyTorch sees a card, else cpu)"},
    "-np": {"type": int, "metavar": "N", "dest": "num_processes",
            "help": "processes (default: nnU-Net's 8, at most one per core)"},
    "-num_parts": {"type": int, "default": 1, "metavar": "N", "help": "number of jobs that share the work"},
    "-part_id": {"type": int, "default": 0, "metavar": "I", "help": "which of these jobs this one is, from 0"},
    "-overwrite_plans_name": {"metavar": "NAME", "help": "another name for the plans"},
    "--overwrite_plans": {"action": "store_true",
                          "help": "replace plans of that name, and volumes that do not fit the new ones"},
    "--overwrite_volumes": {"action": "store_true", "help": "prepare all volumes again"},
    "--allow_other_intensities": {"action": "store_true",
                                  "help": "take images of another modality than the pretraining's or the first "
                                          "dataset's, such as CT after MR"},
    "-i": {"required": True, "metavar": "FOLDER", "help": "folder of images named like case_0000.nii.gz"},
    "-chk": {"default": "checkpoint_final.pth", "metavar": "FILE", "dest": "checkpoint",
             "help": "name of the checkpoint in a model folder"},
    "-step_size": {"type": float, "default": 0.5, "metavar": "X",
                   "help": "step of the sliding window, as a fraction of the patch"},
    "--disable_tta": {"action": "store_true", "help": "do not mirror: faster, less accurate"},
    "-threads": {"type": int, "default": 0, "metavar": "N", "help": "threads of the network; 0 is one per core"},
    "-tolerance": {"nargs": "+", "default": [], "metavar": "MM",
                   "help": "tolerance of the surface Dice in mm: one number for all (default: 2), NAME=MM for single "
                           "structures"},
    "-absent": {"choices": ("flare", "exclude"), "default": "flare",
                "help": "a structure that is in neither label file scores 1 (flare), or does not count (exclude)"},
    "--voxel": {"action": "store_true", "help": "points are in voxels of the file; the first one is 0 0 0"},
    "--ras": {"action": "store_true", "help": "millimetres are RAS instead of LPS, given and printed"},
    "-level": {"type": int, "metavar": "L",
               "help": "level of the feature pyramid, 0 is the finest (default: all; in figures of lapn and sam their "
                       "encodings)"},
    "--verbose": {"action": "store_true", "help": "also print what nnU-Net's functions print"},
}  # fmt: skip


def new_parser(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    """The parser of a command; description and epilog keep their lines."""
    raw = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(name, description=description, epilog=epilog, formatter_class=raw)


def add(p: argparse._ActionsContainer, *names: str, **options: Any) -> None:
    """Add a flag: a shared one by its name, where `options` replace single entries, or one of the command's own.

    The help says the default, where there is one.
    """
    options = _SHARED.get(names[0], {}) | options
    default = options.get("default")
    if default not in (None, []) and "(default" not in options["help"]:
        options["help"] += f" (default: {default})"
    p.add_argument(*names, **options)


def add_point(p: argparse._ActionsContainer, said: str, **options: Any) -> None:
    """Add -p as a point of an image, with its units, in commands that take no plans."""
    point = {"default": None, "metavar": ("X", "Y", "Z"), "dest": "point", "nargs": 3, "type": float, "help": said}
    add(p, "-p", **point | options)
    add_shared(p, "--voxel", "--ras")


def add_shared(p: argparse._ActionsContainer, *names: str) -> None:
    """Add shared flags as they are."""
    for name in names:
        add(p, name)
