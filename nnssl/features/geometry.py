"""Where the voxels of a preprocessed image are in the world and in the image's file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # of affines, and back
_ROUNDING = 1e-6


@dataclass(frozen=True)
class ImageGeometry:
    """Where the voxels of a preprocessed image are.

    World coordinates are (x, y, z) in mm, LPS as in DICOM and SimpleITK: x grows to the left, y to the back, z upwards.
    Voxels of the file are (x, y, z), as viewers show them; voxels of the grid are (z, y, x), after nnU-Net's transpose,
    crop and resampling. Integers are the voxels' centres; points may be anywhere.

    Args:
        affine: (4, 4) from voxels (z, y, x) of the grid to the world.
        file_affine: (4, 4) from voxels (x, y, z) of the file to the world.
        size: (3,) voxels of the grid.
        file_spacing: (3,) mm a voxel of the file, along the axes of the grid.
    """

    affine: Floats
    file_affine: Floats
    size: Floats
    file_spacing: Floats

    @cached_property
    def spacing(self) -> Floats:
        """(3,) mm a voxel of the grid, which differs from the plans' by the rounding of the size."""
        lengths: Floats = np.linalg.norm(self.affine[:3, :3], axis=0)
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
        """(...,) whether (..., 3) voxels of the grid are in the image, outer faces included."""
        voxels = np.asarray(points)
        within = (voxels >= -0.5 - _ROUNDING) & (voxels <= self.size - 0.5 + _ROUNDING)
        return np.asarray(within.all(-1))

    def onto_file(self, cells: NDArray[Any], stride: Sequence[int], size: Sequence[int]) -> NDArray[Any]:
        """Bring a map to the voxels of the image's file: each takes the cell around its centre.

        Args:
            cells: (k, Z, Y, X) of the grid.
            stride: (z, y, x) voxels a cell.
            size: (x, y, z) voxels of the file.

        Returns:
            (x, y, z, k); 0 in what nnU-Net cropped away.
        """
        whole = np.zeros((*size, len(cells)), dtype=cells.dtype)
        plane = np.stack(np.meshgrid(np.arange(size[0]), np.arange(size[1]), indexing="ij"), axis=-1)
        last = np.subtract(cells.shape[1:], 1)
        for z in range(size[2]):
            voxels = np.concatenate([plane, np.full((*plane.shape[:2], 1), z)], axis=-1)
            at = self.world_to_grid(self.file_to_world(voxels))
            inside = self.inside(at)
            places = np.clip(np.floor((at[inside] + 0.5) / np.asarray(stride) + _ROUNDING), 0, last)
            along_z, along_y, along_x = places.astype(int).T
            whole[:, :, z][inside] = cells[:, along_z, along_y, along_x].T
        return whole


def grid_geometry(
    array_affine: Floats, file_affine: Floats, axes: Sequence[int], crop: ArrayLike, size: ArrayLike
) -> ImageGeometry:
    """Geometry of the grid that nnU-Net's transpose, crop and resampling make of an array.

    nnU-Net's resampling keeps the outer faces of the crop in place: voxel g of n is at (g + 0.5) * old / n - 0.5.

    Args:
        array_affine: (4, 4) from voxels (z, y, x) of the array of nnU-Net's reader to the world.
        file_affine: (4, 4) from voxels (x, y, z) of the file to the world; readers may turn an image.
        axes: nnU-Net's transpose_forward: axis i of the grid is axis axes[i] of the array.
        crop: (3, 2) first voxel of nnU-Net's crop and the one behind its last, in the grid's order of axes.
        size: (3,) voxels of the grid.
    """
    start, stop = np.asarray(crop, dtype=np.float64).T
    voxels = np.asarray(size, dtype=np.float64)
    scale = (stop - start) / voxels
    resampled = np.diag([*scale, 1.0])
    resampled[:3, 3] = start + 0.5 * scale - 0.5
    transposed = np.zeros((4, 4))
    transposed[list(axes), range(3)] = transposed[3, 3] = 1.0
    file_spacing = np.linalg.norm(array_affine[:3, :3], axis=0)[list(axes)]
    return ImageGeometry(array_affine @ transposed @ resampled, file_affine, voxels, file_spacing)


def image_geometry(properties: Mapping[str, Any], axes: Sequence[int], size: Sequence[int], file: str) -> ImageGeometry:
    """Geometry of an image preprocessed by nnU-Net's `DefaultPreprocessor`.

    Args:
        properties: of the image, from its reader and from the preprocessor.
        axes: the plans' transpose_forward.
        size: (Z, Y, X) of the preprocessed array.
        file: the image, or its first channel; read where the reader turned it and does not say from what.
    """
    turned = np.eye(4)[[2, 1, 0, 3]]  # from (z, y, x) to (x, y, z)
    if "sitk_stuff" in properties:
        stuff = properties["sitk_stuff"]
        array = of_file = _itk_affine(stuff["origin"], stuff["direction"], stuff["spacing"])
        if "original_orientation" in stuff:
            of_file = _affine_of_header(file)
    elif "nibabel_stuff" in properties:
        stuff = properties["nibabel_stuff"]
        of_file = LPS_TO_RAS @ np.asarray(stuff["original_affine"], dtype=np.float64)
        array = LPS_TO_RAS @ np.asarray(stuff.get("reoriented_affine", stuff["original_affine"]), dtype=np.float64)
    else:
        array = of_file = np.diag([*list(properties["spacing"])[::-1], 1.0])  # the format knows no more
    return grid_geometry(array @ turned, of_file, axes, properties["bbox_used_for_cropping"], size)


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
