"""Preprocessed volumes made by hand, for tests that need no nnU-Net."""

from __future__ import annotations

from pathlib import Path

import blosc2
import numpy as np

from nnssl.data.volumes import Channel, VolumeFolder

CT = Channel("CTNormalization", mean=-1350.0, std=2350.0)
MR = Channel("ZScoreNormalization", mean=300.0, std=100.0)


def make_folder(
    root: Path, channels: tuple[Channel, ...] = (CT,), name: str = "Dataset500_Test",
    spacing: tuple[float, float, float] = (2.0, 1.0, 1.0),
) -> VolumeFolder:  # fmt: skip
    images = root / name / "nnUNetPlans_3d_fullres"
    folder = VolumeFolder(name, images, images.with_name(images.name + "_body"), spacing, channels)
    folder.images.mkdir(parents=True)
    folder.bodies.mkdir()
    return folder


def add_volume(
    folder: VolumeFolder, case: str, image: np.ndarray, body: np.ndarray | None = None,
    chunk: tuple[int, int, int] = (8, 8, 8),
) -> None:  # fmt: skip
    """image (C, Z, Y, X); the body defaults to everything."""
    image = np.ascontiguousarray(image, dtype=np.float32)
    body = np.ones(image.shape[1:], dtype=bool) if body is None else body
    parts = tuple(min(c, s) for c, s in zip(chunk, image.shape[1:], strict=True))
    blosc2.asarray(image, urlpath=str(folder.images / f"{case}.b2nd"), chunks=(1, *parts), blocks=(1, *parts), mode="w")
    mask = blosc2.asarray(body.astype(np.uint8), urlpath=str(folder.bodies / f"{case}.b2nd"), mode="w")
    mask.schunk.vlmeta["slice_counts"] = [int(n) for n in body.sum((1, 2))]
    inside = image[:, body]
    mask.schunk.vlmeta["intensity_range"] = [[float(np.percentile(c, q)) for q in (0.5, 99.5)] for c in inside]


def index_volume(size: tuple[int, int, int], channels: int = 1) -> np.ndarray:
    """(channels, *size): every voxel holds its own linear index, plus a million a channel."""
    index = np.arange(np.prod(size), dtype=np.float32).reshape(size)
    return np.stack([index + 1e6 * c for c in range(channels)])
