"""Small configurations, backbones and batches of LAPN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nnssl.methods.base import Batch
from nnssl.methods.lapn.method import Lapn, LapnConfig
from nnssl.networks.fpn_unet import FPN3d
from tests.volumes import add_volume, make_folder

PATCH = (8, 16, 16)


def lapn_config(**changes: Any) -> LapnConfig:
    return LapnConfig(
        **{"batch_size": 2, "patch_size": PATCH, "points_per_pair": 40, "encoding_dim": 6, "queue_size": 100, **changes}  # type: ignore[arg-type]
    )


def small_fpn(channels: int = 1) -> FPN3d:
    return FPN3d(channels, 4, 2)


def lapn_batch(folder: Path, config: LapnConfig, seed: int = 0, size: tuple[int, int, int] = (24, 30, 30)) -> Batch:
    """Pairs of crops of volumes that differ."""
    volumes = make_folder(folder)
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(config.batch_size or 0):
        add_volume(volumes, f"case_{i}", rng.random((1, *size)))
        samples.append(Lapn.sample(volumes.open(f"case_{i}", i), config, np.random.default_rng([seed, i])))
    return Lapn.collate(samples)
