"""Small runs of the loop on volumes made by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnssl.data.loader import Cases
from nnssl.methods.registry import get_method
from nnssl.networks.build import resolve_configuration
from nnssl.pretraining.folder import Stored
from nnssl.pretraining.loop import Pretraining
from nnssl.pretraining.setup import Setup
from tests.volumes import add_volume, make_folder

CT_WINDOW = {"mean": -1350.0, "std": 2350.0, "percentile_00_5": -900.0, "percentile_99_5": 700.0}
CPU = torch.device("cpu")
SMALL: dict[str, dict[str, Any]] = {  # what keeps a run of a method short
    "vox2vec": {"voxels_per_pair": 24},
    "voco": {"grid": (1, 2, 2), "projection_dim": 16},
    "pimpic": {"crops": 4, "pim_hidden_dim": 8, "pic_hidden_dim": 8, "projection_dim": 8},
    "lapn": {"points_per_pair": 24, "queue_size": 100},
    "sam": {
        "points_per_pair": 60,
        "embedding_dim": 8,
        "fine_queries": 12,
        "fine_ignore_mm": 4.0,
        "fine_ranked": 60,
        "fine_negatives": 20,
        "global_negatives": 10,
        "warmup_steps": 2,
    },
    "mae": {"token_width": 12, "decoder_width": 12, "decoder_depth": 1, "decoder_heads": 2, "warmup_steps": 2},
    "alice": {
        "token_width": 12,
        "decoder_width": 12,
        "decoder_depth": 1,
        "decoder_heads": 2,
        "head_dim": 8,
        "head_hidden": 16,
        "head_bottleneck": 6,
        "warmup_steps": 2,
    },
}


DATASET_JSON = {"channel_names": {"0": "CT"}, "labels": {"background": 0}, "file_ending": ".nii.gz"}


def fpn_plans(base_channels: int = 4, num_scales: int = 3) -> dict[str, Any]:
    """Plans of a small network of the paper's kind (with batch normalisation)."""
    return {
        "plans_name": "nnUNetPlans",
        "dataset_name": "Dataset500_Test",
        "foreground_intensity_properties_per_channel": {"0": CT_WINDOW},
        "configurations": {
            "3d_fullres": {
                "data_identifier": "nnUNetPlans_3d_fullres",
                "batch_size": 2,
                "patch_size": [8, 16, 16],
                "spacing": [2.0, 1.0, 1.0],
                "normalization_schemes": ["CTNormalization"],
                "architecture": {
                    "network_class_name": "nnssl.networks.fpn_unet.FPN3dUNet",
                    "arch_kwargs": {
                        "base_channels": base_channels,
                        "num_scales": num_scales,
                        "strides": [[1, 1, 1], *[[2, 2, 2]] * (num_scales - 1)],
                    },
                    "_kw_requires_import": [],
                },
            }
        },
    }


def make_setup(root: Path, method: str = "vox2vec", volumes: int = 6, held_out: int = 1, **options: Any) -> Setup:
    """A run over random volumes; options are the method's hyper-parameters."""
    folder = make_folder(root / "preprocessed")
    rng = np.random.default_rng(0)
    for i in range(volumes):
        # smooth structures, different in every volume
        coarse = rng.random((1, 4, 6, 6)).repeat(4, 1).repeat(4, 2).repeat(4, 3)
        add_volume(folder, f"case_{i}", coarse + 0.05 * rng.random(coarse.shape))
    names = folder.cases()
    defaults = {"num_epochs": 2, "steps_per_epoch": 3, "val_steps_per_epoch": 1, "batch_size": 2,
                "patch_size": (8, 16, 16), **SMALL.get(method, {})}  # fmt: skip
    config = get_method(method).config_class(**{**defaults, **options})
    out = root / "run"
    out.mkdir()
    split = len(names) - held_out
    plans = fpn_plans()
    return Setup(method, config, plans, DATASET_JSON, {}, "3d_fullres", "all", Cases.of([folder], [names[:split]]),
                 Cases.of([folder], [names[split:]]), out,
                 resolved=resolve_configuration(plans, "3d_fullres"))  # fmt: skip


def resumed(setup: Setup, checkpoint: str) -> Pretraining:
    """The run as `--c` continues it."""
    return Pretraining(replace(setup, resume=Stored(setup.folder / checkpoint)), CPU)


def same_content(a: Any, b: Any) -> bool:
    """Whether two checkpoints, or parts of them, hold bitwise the same tensors and equal values."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_content(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same_content, a, b))
    return bool(a == b)
