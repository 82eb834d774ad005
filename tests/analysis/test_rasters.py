from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk

from nnssl.analysis.rasters import onto_file, save_nifti
from tests.analysis.images import file_affine, geometry, write_file

SIZE = (8, 6, 5)  # (x, y, z)


def test_onto_file__the_same_grid_is_only_turned() -> None:
    values = np.random.default_rng(0).random((2, *SIZE[::-1]))
    np.testing.assert_array_equal(onto_file(values, (1, 1, 1), geometry(SIZE), SIZE), values.transpose(3, 2, 1, 0))


def test_onto_file__cells_and_a_crop() -> None:
    cells = np.arange(1, 1 + 2 * 3 * 4).reshape(1, 2, 3, 4)
    # a crop of 7 x 5 x 4 voxels, each of two grid voxels an axis, four grid voxels a cell
    whole = onto_file(cells, (4, 4, 4), geometry(SIZE, (8, 10, 14), crop=1), SIZE)[..., 0]
    assert whole.shape == SIZE and not whole[0].any() and not whole[:, 0].any() and not whole[:, :, 0].any()
    for x, y, z in ((1, 1, 1), (2, 3, 4), (7, 5, 3)):
        assert whole[x, y, z] == cells[0, (z - 1) // 2, (y - 1) // 2, (x - 1) // 2]


def test_save_nifti__colours_lie_where_the_image_does_for_both_readers(tmp_path: Path) -> None:
    write_file(tmp_path / "image.nii.gz", np.zeros(SIZE[::-1], dtype=np.int16))
    colours = np.random.default_rng(0).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
    save_nifti(colours, geometry(SIZE), tmp_path / "colours.nii.gz")
    raw, image = (sitk.ReadImage(str(tmp_path / f"{name}.nii.gz")) for name in ("image", "colours"))
    assert image.GetNumberOfComponentsPerPixel() == 3 and image.GetSize() == raw.GetSize()
    for ours, theirs in ((image.GetSpacing(), raw.GetSpacing()), (image.GetOrigin(), raw.GetOrigin()),
                         (image.GetDirection(), raw.GetDirection())):  # fmt: skip
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), colours.transpose(2, 1, 0, 3))
    read: Any = nibabel.load(tmp_path / "colours.nii.gz")
    assert read.header["datatype"] == 128  # RGB24
    np.testing.assert_allclose(np.diag([-1, -1, 1, 1]) @ read.affine, file_affine(), atol=1e-5)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["colours.nii.gz", "image.nii.gz"]


def test_save_nifti__values_are_float32(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((*SIZE, 1))
    save_nifti(values, geometry(SIZE), tmp_path / "values.nii.gz")
    image = sitk.ReadImage(str(tmp_path / "values.nii.gz"))
    assert image.GetPixelID() == sitk.sitkFloat32
    np.testing.assert_allclose(sitk.GetArrayFromImage(image), values[..., 0].T, rtol=1e-6)
