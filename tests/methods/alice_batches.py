"""Small configurations, methods and batches of Alice."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnssl.data.loader import RelativePosition
from nnssl.data.volumes import BloscVolume
from nnssl.methods.alice.method import Alice, AliceConfig
from nnssl.methods.base import Batch, Match
from nnssl.networks.fpn_unet import FPN3d
from tests.volumes import CT, Channel, add_volume, make_folder

PATCH = (16, 16, 24)


def alice_config(**changes: Any) -> AliceConfig:
    small: dict[str, Any] = {
        "batch_size": 2, "patch_size": PATCH, "token_width": 12, "decoder_width": 12, "decoder_depth": 1,
        "decoder_heads": 2, "head_dim": 8, "head_hidden": 16, "head_bottleneck": 6, "casa_hidden": 16,
    }  # fmt: skip
    return AliceConfig(**{**small, **changes})


def match_with(other: BloscVolume, volume: BloscVolume, rng: np.random.Generator) -> Match:
    return RelativePosition().match(volume, other, rng)


def alice_method(config: AliceConfig, channels: int = 1) -> Alice:
    torch.manual_seed(0)
    return Alice(FPN3d(channels, 4, 2, levels="encoder"), config)


def alice_batch(tmp_path: Path, config: AliceConfig, channels: tuple[Channel, ...] = (CT,)) -> Batch:
    folder = make_folder(tmp_path, channels)
    for i in range(2):
        add_volume(folder, f"case_{i}", np.random.default_rng(i).random((len(channels), 20, 30 + i, 26)))
    samples = []
    for i in range(config.batch_size or 0):
        volume = folder.open(f"case_{i % 2}", i % 2, partial(match_with, folder.open(f"case_{1 - i % 2}", 1 - i % 2)))
        samples.append(Alice.sample(volume, config, np.random.default_rng(i)))
    return Alice.collate(samples)
