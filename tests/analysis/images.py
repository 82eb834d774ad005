"""Prepared images and encoded ones made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from nnssl.features.geometry import ImageGeometry, grid_geometry
from nnssl.features.tiles import EncodedImage

SPACING = (2.0, 1.5, 1.0)  # (x, y, z)
ORIGIN = (10.0, -20.0, 30.0)
DIRECTION = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)


def file_affine() -> np.ndarray:
    """(4, 4) from voxels (x, y, z) of the file to the world."""
    affine = np.eye(4)
    affine[:3, :3] = np.array(DIRECTION).reshape(3, 3) * SPACING
    affine[:3, 3] = ORIGIN
    return affine


def geometry(file_size: tuple[int, int, int], grid: tuple[int, int, int] | None = None, crop: int = 0) -> ImageGeometry:
    """Of a file of (x, y, z) voxels, less `crop` voxels at the beginning of every axis, on a grid (z, y, x)."""
    affine = file_affine()
    size = np.array(file_size[::-1]) - crop
    turned = affine @ np.eye(4)[[2, 1, 0, 3]]
    return grid_geometry(turned, affine, (0, 1, 2), [(crop, crop + n) for n in size], grid or size)


def write_file(path: Path, array: np.ndarray) -> None:
    """Write (z, y, x) with the geometry above."""
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    image.SetDirection(DIRECTION)
    sitk.WriteImage(image, str(path))


def encoded(size: tuple[int, int, int] = (6, 8, 10), seed: int = 0) -> EncodedImage:
    """Random maps of strides 1 and (1, 2, 2)."""
    rng = np.random.default_rng(seed)
    z, y, x = size
    maps = {
        "fine": torch.from_numpy(rng.normal(3, 1, (4, z, y, x))).half(),
        "level 1": torch.from_numpy(rng.normal(-2, 10, (5, z, -(-y // 2), -(-x // 2)))).half(),
    }
    return EncodedImage(maps, {"fine": (1, 1, 1), "level 1": (1, 2, 2)}, size)


def all_voxels(size: tuple[int, int, int]) -> np.ndarray:
    """(N, 3) of a grid."""
    return np.argwhere(np.ones(size, dtype=bool)).astype(float)
