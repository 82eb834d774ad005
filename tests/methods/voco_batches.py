"""Small configurations, backbones and batches of VoCo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nnssl.methods.base import Batch
from nnssl.methods.voco.method import VoCo, VoCoConfig
from nnssl.networks.fpn_unet import FPN3d
from tests.volumes import CT, Channel, add_volume, make_folder

PATCH = (6, 8, 8)


def voco_config(**changes: Any) -> VoCoConfig:
    return VoCoConfig(
        **{"batch_size": 2, "patch_size": PATCH, "grid": (1, 2, 2), "projection_dim": 8, **changes}  # type: ignore[arg-type]
    )


def small_fpn(channels: int = 1) -> FPN3d:
    return FPN3d(channels, 4, 2, levels="encoder")


def voco_batch(tmp_path: Path, config: VoCoConfig, channels: tuple[Channel, ...] = (CT,)) -> Batch:
    folder = make_folder(tmp_path, channels)
    rng = np.random.default_rng(0)
    samples = []
    for i in range(config.batch_size or 0):
        coarse = rng.random((len(channels), 4, 8, 8 + i)).repeat(4, 1).repeat(4, 2).repeat(4, 3)
        add_volume(folder, f"case_{i}", coarse)
        samples.append(VoCo.sample(folder.open(f"case_{i}", i), config, np.random.default_rng(i)))
    return VoCo.collate(samples)
