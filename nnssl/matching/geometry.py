"""From points of a raw image, in millimetres or voxels, to voxels of the grid that nnU-Net preprocesses it to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
_FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])  # between RAS and LPS
_ROUNDING = 1e-6


@dataclass(frozen=True)
class ImageGeometry:
    """Where the voxels of a preprocessed image lie.

    World coordinates are (x, y, z) in mm, LPS as in DICOM and SimpleITK: x grows to the left, y to the back, z upwards.
    Voxels of the file are (x, y, z), as viewers show them; voxels of the grid are (z, y, x), after nnU-Net's transpose,
    crop and resampling. Integers are the voxels' centres, and all points may lie between them.

    Args:
        array_affine: (4, 4) from voxels (z, y, x) of the array that nnU-Net's reader makes, to the world.
        file_affine: (4, 4) from voxels (x, y, z) of the file to the world; readers may turn an image.
        axes: nnU-Net's transpose_forward: axis i of the grid is axis axes[i] of the array.
        crop_start: (3,) first voxel of nnU-Net's crop, in the grid's order of axes.
        crop_size: (3,) voxels of the crop.
        size: (3,) voxels of the grid.
    """

    array_affine: Floats
    file_affine: Floats
    axes: tuple[int, ...]
    crop_start: Floats
    crop_size: Floats
    size: Floats

    @property
    def affine(self) -> Floats:
        """(4, 4) from voxels (z, y, x) of the grid to the world.

        nnU-Net's resampling keeps the outer faces of the crop in place: voxel g of n lies at (g + 0.5) * old / n - 0.5.
        """
        scale = self.crop_size / self.size
        resampled = np.diag([*scale, 1.0])
        resampled[:3, 3] = self.crop_start + 0.5 * scale - 0.5
        transposed = np.zeros((4, 4))
        transposed[list(self.axes), range(3)] = transposed[3, 3] = 1.0
        whole: Floats = self.array_affine @ transposed @ resampled
        return whole

    @property
    def spacing(self) -> Floats:
        """(3,) mm a voxel of the grid, which differs from the plans' by the rounding of the size."""
        lengths: Floats = np.linalg.norm(self.affine[:3, :3], axis=0)
        return lengths

    @property
    def file_spacing(self) -> Floats:
        """(3,) mm a voxel of the file, along the axes of the grid."""
        lengths: Floats = np.linalg.norm(self.array_affine[:3, :3], axis=0)[list(self.axes)]
        return lengths

    def grid_to_world(self, points: ArrayLike) -> Floats:
        """(..., 3) voxels of the grid -> (..., 3) mm."""
        return _apply(self.affine, points)

    def world_to_grid(self, points: ArrayLike) -> Floats:
        """(..., 3) mm -> (..., 3) voxels of the grid."""
        return _apply(np.linalg.inv(self.affine), points)

    def file_to_world(self, points: ArrayLike) -> Floats:
        """(..., 3) voxels of the file -> (..., 3) mm."""
        return _apply(self.file_affine, points)

    def world_to_file(self, points: ArrayLike) -> Floats:
        """(..., 3) mm -> (..., 3) voxels of the file."""
        return _apply(np.linalg.inv(self.file_affine), points)

    def inside(self, points: ArrayLike) -> NDArray[np.bool_]:
        """(...,) whether (..., 3) voxels of the grid lie in the image; its outer faces do."""
        voxels = np.asarray(points)
        within = (voxels >= -0.5 - _ROUNDING) & (voxels <= self.size - 0.5 + _ROUNDING)
        return np.asarray(within.all(-1))


def image_geometry(
    properties: Mapping[str, Any], axes: Sequence[int], size: Sequence[int], file: str | None = None
) -> ImageGeometry:
    """Geometry of an image that nnU-Net's `DefaultPreprocessor` has preprocessed.

    Args:
        properties: what its reader said about the image, with what the preprocessor added.
        axes: the plans' transpose_forward.
        size: (Z, Y, X) of the preprocessed array.
        file: the image, or that of its first channel; read where the reader turned it and does not say from what.
    """
    array, file_affine = _affines(properties, file)
    box = np.asarray(properties["bbox_used_for_cropping"], dtype=np.float64)
    return ImageGeometry(
        array, file_affine, tuple(axes), box[:, 0], box[:, 1] - box[:, 0], np.asarray(size, dtype=np.float64)
    )


def _affines(properties: Mapping[str, Any], file: str | None) -> tuple[Floats, Floats]:
    """Of the array (z, y, x) and of the file (x, y, z)."""
    turned = np.eye(4)[[2, 1, 0, 3]]  # from (z, y, x) to (x, y, z)
    if "sitk_stuff" in properties:
        stuff = properties["sitk_stuff"]
        affine = _itk_affine(stuff["origin"], stuff["direction"], stuff["spacing"])
        was_turned = "original_orientation" in stuff and file is not None
        return affine @ turned, _affine_of_header(str(file)) if was_turned else affine
    if "nibabel_stuff" in properties:
        stuff = properties["nibabel_stuff"]
        original = _FLIP @ np.asarray(stuff["original_affine"], dtype=np.float64)
        array = _FLIP @ np.asarray(stuff.get("reoriented_affine", stuff["original_affine"]), dtype=np.float64)
        return array @ turned, original
    affine = np.diag([*list(properties["spacing"])[::-1], 1.0])  # a format that knows no more
    return affine @ turned, affine


def _itk_affine(origin: Sequence[float], direction: Sequence[float], spacing: Sequence[float]) -> Floats:
    """(4, 4) from voxels (x, y, z); a fourth axis, the channels', is left out."""
    dimensions = len(spacing)
    cosines = np.asarray(direction, dtype=np.float64).reshape(dimensions, dimensions)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = cosines * np.asarray(spacing, dtype=np.float64)[:3]
    affine[:3, 3] = np.asarray(origin, dtype=np.float64)[:3]
    return affine


def _affine_of_header(file: str) -> Floats:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    reader.ReadImageInformation()
    return _itk_affine(reader.GetOrigin(), reader.GetDirection(), reader.GetSpacing())


def _apply(affine: NDArray[Any], points: ArrayLike) -> Floats:
    moved: Floats = np.asarray(points, dtype=np.float64) @ affine[:3, :3].T + affine[:3, 3]
    return moved
