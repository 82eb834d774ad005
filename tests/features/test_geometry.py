from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnssl.core.errors import UserError
from nnssl.features.cases import channel_files
from nnssl.features.images import PreparedImage, prepare_image
from tests.features.test_images import Source
from tests.pretrainings import tiny_plans

SIZE, CROP = (22, 26, 30), ((3, 20), (4, 23), (2, 28))  # array axes (z, y, x)
TURNED = (0.0, 1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 1.0)  # an axis order and signs of its own
SOFT = np.cos(0.3), np.sin(0.3)
OBLIQUE = (SOFT[0], -SOFT[1], 0.0, SOFT[1], SOFT[0], 0.0, 0.0, 0.0, -1.0)
LPS = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
JSON = {"channel_names": {"0": "x", "1": "y", "2": "z"}, "labels": {"background": 0}, "file_ending": ".nii.gz"}
OFFSET = 500.0  # no coordinate is 0, which is what nnU-Net cuts off


def _write(folder: Path, direction: tuple[float, ...]) -> sitk.Image:
    """Three channels that hold the world coordinates of their voxels, zero outside of a box."""
    image = sitk.Image(*SIZE[::-1], sitk.sitkFloat64)
    image.SetSpacing((1.1, 1.4, 2.0))
    image.SetOrigin((-31.0, 12.0, 7.5))
    image.SetDirection(direction)
    voxels = np.stack(np.meshgrid(*map(np.arange, SIZE), indexing="ij"), -1)[..., ::-1].reshape(-1, 3)
    world = np.array([image.TransformContinuousIndexToPhysicalPoint(v.astype(float).tolist()) for v in voxels])
    inside = np.zeros(SIZE, dtype=bool)
    inside[tuple(slice(*side) for side in CROP)] = True
    for channel in range(3):
        values = np.where(inside, world[:, channel].reshape(SIZE) + OFFSET, 0.0)
        written = sitk.GetImageFromArray(values)
        written.CopyInformation(image)
        sitk.WriteImage(written, str(folder / f"case_{channel:04d}.nii.gz"))
    return image


def _plans(**changes: Any) -> dict[str, Any]:
    linear = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": False}  # a spline rings at the edges
    plans = tiny_plans(
        resampling_fn_data_kwargs=linear,
        normalization_schemes=["NoNormalization"] * 3,
        use_mask_for_norm=[False] * 3,
        spacing=[1.7, 1.2, 1.3],
    )
    plans["foreground_intensity_properties_per_channel"] = {
        str(c): plans["foreground_intensity_properties_per_channel"]["0"] for c in range(3)
    }
    return plans | changes


def prepare(image: Path, plans: dict[str, Any], dataset_json: dict[str, Any] = JSON) -> PreparedImage:
    """Preprocess an image by plans of a pretraining."""
    return prepare_image(image, Source(dataset_json, plans=plans))


def _prepare(folder: Path, **changes: Any) -> PreparedImage:
    return prepare(folder / "case_0000.nii.gz", _plans(**changes))


@pytest.mark.parametrize("direction", [LPS, TURNED, OBLIQUE], ids=["lps", "turned", "oblique"])
@pytest.mark.parametrize("axes", [[0, 1, 2], [2, 0, 1]], ids=str)
@pytest.mark.parametrize("reader", ["SimpleITKIO", "SimpleITKIOWithReorient", "NibabelIO", "NibabelIOWithReorient"])
def test_grid_to_world__is_what_the_voxels_hold(
    tmp_path: Path, direction: tuple[float, ...], axes: list[int], reader: str
) -> None:
    """Transpose, crop, resampling, spacing, origin, direction and reader, all by nnU-Net's own code."""
    file = _write(tmp_path, direction)
    image = _prepare(tmp_path, image_reader_writer=reader, transpose_forward=axes)
    geometry, size = image.geometry, image.values.shape[1:]
    assert tuple(geometry.size) == size
    voxels = np.stack(np.meshgrid(*(np.arange(3, n - 3) for n in size), indexing="ij"), -1)  # the edge is repeated
    held = np.moveaxis(image.values, 0, -1)[3:-3, 3:-3, 3:-3] - OFFSET
    world = geometry.grid_to_world(voxels)
    np.testing.assert_allclose(world, held, atol=2e-3)
    np.testing.assert_allclose(geometry.world_to_grid(world), voxels, atol=1e-6)
    one = world[0, 0, 0]
    np.testing.assert_allclose(
        geometry.world_to_file(one), file.TransformPhysicalPointToContinuousIndex(one.tolist()), atol=1e-4
    )
    np.testing.assert_allclose(geometry.file_to_world(geometry.world_to_file(one)), one)
    steps = np.linalg.norm(np.diff(held, axis=2), axis=-1)
    np.testing.assert_allclose(steps, geometry.spacing[2], rtol=1e-3)


def test_inside__the_crop_with_its_outer_faces(tmp_path: Path) -> None:
    file = _write(tmp_path, LPS)
    geometry = _prepare(tmp_path).geometry
    (z0, z1), (y0, y1), (x0, x1) = CROP
    for voxel, expected in (
        ((x0 - 0.49, y0 - 0.49, z0 - 0.49), True),
        ((x1 - 0.51, y1 - 0.51, z1 - 0.51), True),
        ((x0 - 0.51, y0, z0), False),
        ((x0, y0, z1 - 0.49), False),
    ):
        world = file.TransformContinuousIndexToPhysicalPoint(voxel)
        assert bool(geometry.inside(geometry.world_to_grid(world))) == expected, voxel


def test_image_geometry__a_format_without_world_coordinates_counts_from_the_first_voxel(tmp_path: Path) -> None:
    import tifffile

    values = np.random.default_rng(0).random((12, 14, 16)).astype(np.float32) + 1
    tifffile.imwrite(tmp_path / "case_0000.tif", values)
    (tmp_path / "case.json").write_text('{"spacing": [2.0, 1.5, 1.0]}')
    plans = tiny_plans(normalization_schemes=["NoNormalization"], spacing=[2.0, 1.5, 1.0])
    plans["image_reader_writer"] = "Tiff3DIO"
    image = prepare(tmp_path / "case_0000.tif", plans, JSON | {"file_ending": ".tif"})
    np.testing.assert_allclose(image.geometry.grid_to_world([3, 2, 1]), [1.0, 3.0, 6.0])
    np.testing.assert_allclose(image.geometry.file_to_world([1, 2, 3]), [1.0, 3.0, 6.0])


def test_prepare_image__one_file_with_all_channels(tmp_path: Path) -> None:
    parts = []
    _write(tmp_path, OBLIQUE)
    for channel in range(3):
        parts.append(sitk.ReadImage(str(tmp_path / f"case_{channel:04d}.nii.gz")))
    sitk.WriteImage(sitk.JoinSeries(parts), str(tmp_path / "whole_0000.nii.gz"))
    whole = prepare(tmp_path / "whole_0000.nii.gz", _plans())
    single = _prepare(tmp_path)
    assert whole.name == "whole" and single.name == "case"
    np.testing.assert_array_equal(whole.values, single.values)
    np.testing.assert_allclose(whole.geometry.affine, single.geometry.affine, atol=1e-6)
    np.testing.assert_allclose(whole.geometry.file_affine, single.geometry.file_affine, atol=1e-6)


def test_channel_files__by_file_and_by_case(tmp_path: Path) -> None:
    names = [str(tmp_path / f"a.b_{c:04d}.nii.gz") for c in range(2)]
    for name in names:
        Path(name).touch()
    assert channel_files(tmp_path / "a.b", 2, ".nii.gz") == tuple(names)
    assert channel_files(names[0], 2, ".nii.gz") == tuple(names)
    assert channel_files(names[1], 1, ".nii.gz") == (names[1],)
    assert channel_files(tmp_path / "a.b", 1, ".nii.gz") == (names[0],)


def test_channel_files__what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no image .*nothing; give a file such as case_0000\.nrrd"):
        channel_files(tmp_path / "nothing", 1, ".nrrd")
    for channel in (0, 1):
        (tmp_path / f"a_{channel:04d}.nrrd").touch()
    with pytest.raises(UserError, match=r"3 channels, and .*a_0002\.nrrd is missing"):
        channel_files(tmp_path / "a", 3, ".nrrd")
    with pytest.raises(UserError, match=r"3 channels, and .*a_0002\.nrrd is missing"):
        channel_files(tmp_path / "a_0000.nrrd", 3, ".nrrd")


def test_prepare_image__a_file_that_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "case_0000.nii.gz").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be used: unreadable image"):
        prepare(tmp_path / "case", tiny_plans())
