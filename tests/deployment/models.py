"""Model folders of small networks that were never trained, and images for them."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nnssl_trainers
from nnssl.data.pool import quietly
from tests.networks.helpers import fpn_configuration, unet_configuration
from tests.phantoms import ct_volume, write_volume
from tests.pretrainings import tiny_plans

TRAINERS = Path(nnssl_trainers.__file__).parent
DATASET_JSON = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "spine": 2},
                "file_ending": ".nii.gz"}  # fmt: skip
STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2]]
PATCH = [12, 16, 16]


def model_plans(kind: str = "PlainConvUNet", patch: list[int] | None = None) -> dict[str, Any]:
    """Plans with 3d_fullres, 2d, and a cascade whose second stage has the network of 3d_fullres."""
    made = fpn_configuration(3, 4) if kind == "FPN3dUNet" else unet_configuration(kind, STRIDES, [4, 6, 8])
    plans = tiny_plans(patch_size=patch or PATCH, architecture=made["architecture"])
    configurations = plans["configurations"]
    flat = deepcopy(configurations["3d_fullres"]) | {"patch_size": [16, 16], "spacing": [1.5, 1.5]}
    arguments = flat["architecture"]["arch_kwargs"]
    if kind != "FPN3dUNet":
        arguments.update(conv_op="torch.nn.modules.conv.Conv2d", kernel_sizes=[[3, 3]] * 3,
                         norm_op="torch.nn.modules.instancenorm.InstanceNorm2d",
                         strides=[[1, 1], [2, 2], [2, 2]])  # fmt: skip
    configurations["2d"] = flat
    configurations["3d_lowres"] = {"inherits_from": "3d_fullres", "next_stage": "3d_cascade_fullres"}
    configurations["3d_cascade_fullres"] = {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"}
    return plans


def write_model(
    folder: Path,
    kind: str = "PlainConvUNet",
    trainer: str = "nnUNetTrainer",
    configuration: str = "3d_fullres",
    fold: str = "0",
    axes: tuple[int, ...] | None = (0, 1, 2),
    patch: list[int] | None = None,
    **block: Any,
) -> Path:
    """A fold of a model folder as nnU-Net writes it; `block` is the network that plans describe to our trainers."""
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = model_plans(kind, patch)
    if block:
        plans["nnssl"] = {"network": {"intensity": None, **block}}
    manager = PlansManager(plans)
    config = manager.get_configuration(configuration)
    channels = determine_num_input_channels(manager, config, DATASET_JSON)
    with quietly():
        trainer_class = recursive_find_trainer_class_by_name(trainer)
    torch.manual_seed(int(fold) if fold.isdigit() else 9)
    network = trainer_class.build_network_architecture(manager, config, channels, 3, enable_deep_supervision=False)
    (folder / f"fold_{fold}").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans))
    (folder / "dataset.json").write_text(json.dumps(DATASET_JSON))
    checkpoint = {"network_weights": network.state_dict(), "trainer_name": trainer,
                  "init_args": {"configuration": configuration, "plans": plans, "fold": fold},
                  "inference_allowed_mirroring_axes": axes}  # fmt: skip
    torch.save(checkpoint, folder / f"fold_{fold}" / "checkpoint_final.pth")
    return folder


def write_images(folder: Path, cases: int = 1) -> Path:
    """Torso CTs of other shapes than the patch."""
    for case in range(cases):
        hu, _ = ct_volume((20, 24, 28 + 2 * case), np.random.default_rng(case))
        write_volume(folder / f"case_{case}_0000.nii.gz", hu, (3.0, 1.5, 1.5))
    return folder
