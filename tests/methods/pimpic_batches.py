"""Volumes, options and batches of PiMPiC's tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nnssl.core.geometry import overlaps_of_patches
from nnssl.data.volumes import BloscVolume
from nnssl.methods.base import Batch, Sample
from nnssl.methods.pimpic.method import Pimpic, PimpicConfig
from nnssl.methods.shared.overlapping_crops import cut_crops
from tests.volumes import CT, add_volume, index_volume, make_folder


def small_config(**changed: Any) -> PimpicConfig:
    small = {"patch_size": (8, 8, 8), "crops": 5, "pim_hidden_dim": 8, "pic_hidden_dim": 8, "projection_dim": 8}
    return PimpicConfig(**{**small, **changed})


def numbered_volume(
    root: Path, size: tuple[int, int, int] = (20, 24, 22), channels: tuple[Any, ...] = (CT,)
) -> BloscVolume:
    """Values are the linear index, 0 is the padding."""
    folder = make_folder(root, channels)
    add_volume(folder, "a", index_volume(size, len(channels)) + 1)
    return folder.open("a")


def random_batch(root: Path, config: PimpicConfig, channels: tuple[Any, ...] = (CT,), volumes: int = 2) -> Batch:
    folder, rng = make_folder(root, channels), np.random.default_rng(0)
    for i in range(volumes):
        add_volume(folder, f"case_{i}", rng.random((len(channels), 20, 24, 22)))
    samples = [Pimpic.sample(folder.open(f"case_{i}", i), config, np.random.default_rng(i)) for i in range(volumes)]
    return Pimpic.collate(samples)


def crops_at(starts: list[list[int]], config: PimpicConfig) -> Batch:
    """Crops of noise at given places."""
    overlap, boxes = overlaps_of_patches(np.array(starts), config.patch_size or ())
    crops = np.random.default_rng(0).random((len(starts), 1, *(config.patch_size or ())), dtype=np.float32)
    pairs = np.argwhere(np.triu(overlap >= config.least_overlap, k=1))
    return joined({"crops": crops, "overlap": overlap, "boxes": boxes, "pairs": pairs})


def joined(*samples: Sample) -> Batch:
    """A batch that is augmented already, without regions."""
    return Pimpic.collate([{**s, "region": np.zeros((1, 0, 0, 0), dtype=np.float32)} for s in samples])


def crops_of(sample: Sample) -> np.ndarray:
    """The crops (N, C, 8, 8, 8) of a sample."""
    return cut_crops(Pimpic.collate([sample]), (8, 8, 8))[0].numpy()
