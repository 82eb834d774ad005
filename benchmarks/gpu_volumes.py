"""Phantom torsos as preprocessed volumes: what nnU-Net's preprocessing would leave, made without nnU-Net."""

from __future__ import annotations

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import blosc2
import numpy as np
import torch
import torch.nn.functional as F

from nnssl.data.check_case import body_mask_ct
from nnssl.data.loader import number_of_workers
from nnssl.data.storage import save_body_mask
from nnssl.data.volumes import Channel, VolumeFolder
from nnssl.demo.anatomy import LABELS
from nnssl.demo.phantom import Torso, make_torso

# As nnU-Net 2.8 writes them: its codec, level and filter for noisy images, and near the shapes that it chooses for the
# presets' patches, 64 KiB blocks in chunks of a few MB.
_BLOCK, _CHUNK = (16, 32, 32), (48, 128, 128)
_PACKING = {"codec": blosc2.Codec.LZ4HC, "clevel": 5, "filters": [blosc2.Filter.SHUFFLE], "nthreads": 1}
_LOCATIONS = 2000  # voxels kept of a label, spread evenly over it


@dataclass(frozen=True)
class Writing:
    """How torsos become volumes: CT intensities clipped to `window` (low, high, mean, std) in HU, spacing in mm.

    Without a spacing the torso's own voxels stay.
    """

    folder: VolumeFolder
    window: tuple[float, float, float, float]
    spacing: tuple[float, float, float] | None


def draw_torsos(count: int) -> list[Torso]:
    """Draw torsos of different patients, with as many processes as the loader has."""
    with _pool() as pool:
        return list(pool.map(_draw, range(count)))


def write_volumes(
    root: Path, name: str, plans: dict[str, Any], torsos: list[Torso], spacing: tuple[float, float, float] | None
) -> VolumeFolder:
    """Write torsos as `case_00`, ... with labels and body masks, as plans with one CT channel say; returns the folder.

    Args:
        root: where the dataset's folder is made.
        name: of the dataset.
        plans: their intensity window is taken.
        torsos: to write.
        spacing: mm along (Z, Y, X); None: the first torso's.
    """
    window = plans["foreground_intensity_properties_per_channel"]["0"]
    low, high, mean, std = (float(window[k]) for k in ("percentile_00_5", "percentile_99_5", "mean", "std"))
    images = root / name / "volumes"
    folder = VolumeFolder(name, images, images.with_name("volumes_body"), spacing or torsos[0].spacing,
                          (Channel("CTNormalization", mean, std),))  # fmt: skip
    folder.images.mkdir(parents=True)
    folder.bodies.mkdir()
    how = Writing(folder, (low, high, mean, std), spacing)
    with _pool() as pool:
        list(pool.map(partial(_write, how), (f"case_{i:02d}" for i in range(len(torsos))), torsos))
    return folder


def _pool() -> ProcessPoolExecutor:
    # forked as the loader's workers are; they touch no card
    forking = multiprocessing.get_context("fork")
    return ProcessPoolExecutor(max(1, number_of_workers()), mp_context=forking, initializer=torch.set_num_threads,
                               initargs=(1,))  # fmt: skip


def _draw(number: int) -> Torso:
    return make_torso(np.random.default_rng((0, 500, number)))


def _write(how: Writing, case: str, torso: Torso) -> None:
    low, high, mean, std = how.window
    spacing = how.spacing or torso.spacing
    size = [round(n * own / new) for n, own, new in zip(torso.hu.shape, torso.spacing, spacing, strict=True)]
    image = (_resized(torso.hu, size).clip(low, high)[None] - mean) / std
    body = _resized(body_mask_ct(torso.hu), size) >= 0.5
    labels = np.zeros(size, dtype=np.int16)
    for value in LABELS.values():
        labels[_resized(torso.labels == value, size) >= 0.5] = value
    folder = how.folder
    _save(folder.images / f"{case}.b2nd", image)
    _save(folder.images / f"{case}_seg.b2nd", labels[None])
    with open(folder.images / f"{case}.pkl", "wb") as file:  # what nnU-Net samples patches by, and the probe
        pickle.dump({"class_locations": {value: _places(labels == value) for value in LABELS.values()}}, file)
    save_body_mask(folder.bodies / f"{case}.b2nd", body, image)


def _resized(array: np.ndarray, size: list[int]) -> np.ndarray:
    """Linear interpolation of (Z, Y, X) to another size, as float32."""
    values = torch.from_numpy(array.astype(np.float32))
    if list(array.shape) == size:
        return values.numpy()
    return F.interpolate(values[None, None], size, mode="trilinear", align_corners=False)[0, 0].numpy()


def _save(file: Path, array: np.ndarray) -> None:
    chunk, block = (tuple(map(min, (1, *part), array.shape)) for part in (_CHUNK, _BLOCK))
    blosc2.asarray(np.ascontiguousarray(array), urlpath=str(file), chunks=chunk, blocks=block, cparams=_PACKING)


def _places(mask: np.ndarray) -> np.ndarray:
    """Voxels (N, 4) of a mask, with a channel of 0 in front, as nnU-Net keeps them."""
    voxels = np.argwhere(mask)
    return np.insert(voxels[:: -(-len(voxels) // _LOCATIONS) or 1], 0, 0, axis=1)
