"""Maps of a preprocessed image on the grid of its file, as NIfTI."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nnssl.analysis.features import FeatureSource
from nnssl.core.errors import UserError
from nnssl.features.images import ImageGeometry, channel_files

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # NIfTI's world
_RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])  # NIfTI's own type of colour images


def size_of_file(source: FeatureSource, image: str | Path) -> tuple[int, int, int]:
    """Voxels (x, y, z) of a raw image's file.

    Raises:
        UserError: SimpleITK does not read it.
    """
    import SimpleITK as sitk

    channels = source.model.input_channels
    file = channel_files(image, channels, source.model.dataset_json["file_ending"])[0]
    reader = sitk.ImageFileReader()
    reader.SetFileName(file)
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise UserError(f"{file} is of a format that has no voxels in space; give a NIfTI, NRRD or MHA file") from error
    x, y, z = reader.GetSize()[:3]
    return x, y, z


def onto_file(cells: NDArray[Any], stride: Sequence[int], geometry: ImageGeometry, size: Sequence[int]) -> NDArray[Any]:
    """Bring a map to the voxels of the image's file: each takes the cell that its centre lies in.

    Args:
        cells: (k, Z, Y, X) of the preprocessed grid.
        stride: (z, y, x) voxels a cell.
        geometry: of the preprocessed image.
        size: (x, y, z) voxels of the file.

    Returns:
        (x, y, z, k); 0 in what nnU-Net cropped away.
    """
    whole = np.zeros((*size, len(cells)), dtype=cells.dtype)
    plane = np.stack(np.meshgrid(np.arange(size[0]), np.arange(size[1]), indexing="ij"), axis=-1)
    for z in range(size[2]):
        voxels = np.concatenate([plane, np.full((*plane.shape[:2], 1), z)], axis=-1)
        at = geometry.world_to_grid(geometry.file_to_world(voxels))
        inside = geometry.inside(at)
        places = np.clip(np.floor((at[inside] + 0.5) / np.asarray(stride) + 1e-6), 0, np.subtract(cells.shape[1:], 1))
        along_z, along_y, along_x = places.astype(int).T
        whole[:, :, z][inside] = cells[:, along_z, along_y, along_x].T
    return whole


def save_nifti(values: NDArray[Any], geometry: ImageGeometry, file: Path) -> None:
    """Write a map (x, y, z, k) of the file's voxels: k = 1 values as float32, k = 3 uint8 as NIfTI's RGB24."""
    import nibabel

    if values.shape[3] == 3:
        data: NDArray[Any] = np.ascontiguousarray(values.astype(np.uint8)).view(_RGB)[..., 0]
    else:
        data = values[..., 0].astype(np.float32)
    affine = _LPS_TO_RAS @ geometry.file_affine
    image = nibabel.Nifti1Image(data, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=1)
    temporary = file.with_name(f".writing_{file.name}")  # nibabel goes by the ending
    nibabel.save(image, temporary)
    temporary.replace(file)
