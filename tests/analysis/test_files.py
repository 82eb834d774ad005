from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import blosc2
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnssl.analysis.files import (
    cell_affine,
    describe_geometry,
    read_vectors,
    write_dense,
    write_on_image,
    write_vectors,
)
from nnssl.core.errors import UserError
from nnssl.features.images import PreparedImage
from nnssl.networks.pyramid import Stride
from tests.analysis import images
from tests.features import test_geometry as geometry

STRIDE: Stride = (1, 2, 2)
SIZE = (8, 6, 5)  # (x, y, z)
NOTES = {"method": "voco", "what": "dense", "case": "case"}


def _coordinates(tmp_path: Path, direction: tuple[float, ...], axes: list[int]) -> tuple[PreparedImage, np.ndarray]:
    """An image that went through nnU-Net and holds where its voxels lie, and the mean (3, Z', Y', X') of its cells."""
    geometry._write(tmp_path, direction)
    plans = geometry._plans(transpose_forward=axes)
    image = geometry.prepare(tmp_path / "case_0000.nii.gz", plans)
    values = image.values - geometry.OFFSET
    for axis, step in enumerate(STRIDE, start=1):
        whole = values.shape[axis] // step * step
        values = np.moveaxis(values, axis, 0)[:whole].reshape(-1, step, *np.moveaxis(values, axis, 0).shape[1:])
        values = np.moveaxis(values.mean(1), 0, axis)
    return image, values


def _write(file: Path, file_format: str, image: PreparedImage, held: np.ndarray) -> None:
    def fill(out: Any) -> None:
        half = held.shape[1] // 2  # part by part
        out[:, :half] = held[:, :half].astype(np.float16)
        out[:, half:] = held[:, half:].astype(np.float16)

    z, y, x = held.shape[1:]
    write_dense(file, file_format, (3, z, y, x), cell_affine(image.geometry, STRIDE), fill, NOTES, (4, 4, 4))


@pytest.mark.parametrize(
    "direction", [geometry.LPS, geometry.TURNED, geometry.OBLIQUE], ids=["lps", "turned", "oblique"]
)
@pytest.mark.parametrize("axes", [[0, 1, 2], [2, 0, 1]], ids=str)
def test_write_dense__nifti_overlays_the_image(tmp_path: Path, direction: tuple[float, ...], axes: list[int]) -> None:
    """Every voxel holds its own place in mm: transpose, crop, resampling, stride, origin, spacing and direction."""
    image, held = _coordinates(tmp_path, direction, axes)
    _write(tmp_path / "map.nii.gz", "nifti", image, held)
    read = sitk.ReadImage(str(tmp_path / "map.nii.gz"))
    assert read.GetDimension() == 4 and read.GetSize() == (*held.shape[:0:-1], 3)
    of_component = [read[:, :, :, c] for c in range(3)]
    inner = [range(3, n - 3) for n in of_component[0].GetSize()]  # resampling repeats the edge
    for x, y, z in np.stack(np.meshgrid(*inner), -1).reshape(-1, 3)[::17].tolist():
        place = of_component[0].TransformIndexToPhysicalPoint((x, y, z))
        stored = [component[x, y, z] for component in of_component]
        np.testing.assert_allclose(place, stored, atol=0.05)  # float16 values of up to 60 mm
    viewed: Any = nibabel.load(tmp_path / "map.nii.gz")
    np.testing.assert_allclose(viewed.get_sform(), viewed.get_qform(), atol=1e-4)
    assert viewed.header["sform_code"] == viewed.header["qform_code"] == 1
    assert viewed.get_data_dtype() == np.float32 and viewed.header.get_xyzt_units()[0] == "mm"


@pytest.mark.parametrize("axes", [[0, 1, 2], [2, 0, 1]], ids=str)
def test_write_dense__blosc2_says_where_it_lies(tmp_path: Path, axes: list[int]) -> None:
    image, held = _coordinates(tmp_path, geometry.OBLIQUE, axes)
    _write(tmp_path / "map.b2nd", "blosc2", image, held)
    array = blosc2.open(str(tmp_path / "map.b2nd"), mode="r")
    assert array.dtype == np.float16 and array.shape == held.shape
    np.testing.assert_array_equal(array[:], held.astype(np.float16))
    notes = array.schunk.vlmeta["nnssl"]
    assert notes["case"] == "case"
    cell = (5, 4, 6)
    place = held[:, 5, 4, 6]
    affine = np.array(notes["affine_zyx_to_lps"])
    np.testing.assert_allclose(affine[:3, :3] @ cell + affine[:3, 3], place, atol=1e-2)
    # the same by SimpleITK
    itk = sitk.GetImageFromArray(held[0])
    itk.SetSpacing(notes["spacing"])
    itk.SetOrigin(notes["origin"])
    itk.SetDirection(notes["direction"])
    np.testing.assert_allclose(itk.TransformIndexToPhysicalPoint(cell[::-1]), place, atol=1e-2)


def test_describe_geometry__is_plain() -> None:
    notes = describe_geometry(np.diag([3.0, 2.0, 1.0, 1.0])[[2, 1, 0, 3]])
    assert notes["spacing"] == [1.0, 2.0, 3.0] and notes["origin"] == [0.0, 0.0, 0.0]
    assert notes["direction"] == [1, 0, 0, 0, 1, 0, 0, 0, 1]


@pytest.mark.parametrize("file_format", ["blosc2", "nifti"])
def test_write_dense__nothing_half_written(tmp_path: Path, file_format: str) -> None:
    def fill(out: Any) -> None:
        out[:, :1] = 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dense(tmp_path / "map", file_format, (2, 4, 4, 4), np.eye(4), fill, NOTES, (2, 2, 2))
    assert not list(tmp_path.iterdir())


def test_write_dense__a_map_that_does_not_fit_on_the_disk(tmp_path: Path) -> None:
    shape = (10**6, 10**4, 10**4, 10**4)
    with pytest.raises(UserError, match="set -components 3 or so"):
        write_dense(tmp_path / "map", "nifti", shape, np.eye(4), lambda out: None, NOTES, (2, 2, 2))
    assert not list(tmp_path.iterdir())


def test_onto_file__the_same_grid_is_only_turned() -> None:
    values = np.random.default_rng(0).random((2, *SIZE[::-1]))
    np.testing.assert_array_equal(
        images.geometry(SIZE).onto_file(values, (1, 1, 1), SIZE), values.transpose(3, 2, 1, 0)
    )


def test_onto_file__cells_and_a_crop() -> None:
    cells = np.arange(1, 1 + 2 * 3 * 4).reshape(1, 2, 3, 4)
    # a crop of 7 x 5 x 4 voxels, each of two grid voxels an axis, four grid voxels a cell
    whole = images.geometry(SIZE, (8, 10, 14), crop=1).onto_file(cells, (4, 4, 4), SIZE)[..., 0]
    assert whole.shape == SIZE and not whole[0].any() and not whole[:, 0].any() and not whole[:, :, 0].any()
    for x, y, z in ((1, 1, 1), (2, 3, 4), (7, 5, 3)):
        assert whole[x, y, z] == cells[0, (z - 1) // 2, (y - 1) // 2, (x - 1) // 2]


def _image(file: Path) -> PreparedImage:
    return PreparedImage("image", np.zeros((1, *SIZE[::-1])), images.geometry(SIZE), file=str(file))


def test_write_on_image__colours_lie_where_the_image_does_for_both_readers(tmp_path: Path) -> None:
    images.write_file(tmp_path / "image.nii.gz", np.zeros(SIZE[::-1], dtype=np.int16))
    colours = np.random.default_rng(0).integers(0, 256, (3, *SIZE[::-1])).astype(np.uint8)
    image_of_colours = _image(tmp_path / "image.nii.gz")
    write_on_image(colours, (1, 1, 1), image_of_colours, tmp_path / "colours.nii.gz")
    raw, image = (sitk.ReadImage(str(tmp_path / f"{name}.nii.gz")) for name in ("image", "colours"))
    assert image.GetNumberOfComponentsPerPixel() == 3 and image.GetSize() == raw.GetSize()
    for ours, theirs in ((image.GetSpacing(), raw.GetSpacing()), (image.GetOrigin(), raw.GetOrigin()),
                         (image.GetDirection(), raw.GetDirection())):  # fmt: skip
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), colours.transpose(1, 2, 3, 0))
    read: Any = nibabel.load(tmp_path / "colours.nii.gz")
    assert read.header["datatype"] == 128  # RGB24
    np.testing.assert_allclose(np.diag([-1, -1, 1, 1]) @ read.affine, images.file_affine(), atol=1e-5)
    write_on_image(colours[:1] / 3.0, (1, 1, 1), image_of_colours, tmp_path / "values.nii.gz")
    values = sitk.ReadImage(str(tmp_path / "values.nii.gz"))
    assert values.GetPixelID() == sitk.sitkFloat32
    np.testing.assert_allclose(sitk.GetArrayFromImage(values), colours[0] / 3.0, rtol=1e-6)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["colours.nii.gz", "image.nii.gz", "values.nii.gz"]


def test_write_on_image__a_format_without_voxels_in_space(tmp_path: Path) -> None:
    (tmp_path / "image.tif").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"image\.tif has a format without voxels in space; give a NIfTI"):
        write_on_image(np.zeros((1, 2, 2, 2)), (1, 1, 1), _image(tmp_path / "image.tif"), tmp_path / "map.nii.gz")


def test_write_vectors__come_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = {name: rng.normal(size=5).astype(np.float32) for name in ("b", "a", "ä 3")}
    assert read_vectors(tmp_path / "vectors.npz") == {}
    write_vectors(tmp_path, vectors, [0, 2, 5], as_csv=True, finest=1)
    found = read_vectors(tmp_path / "vectors.npz")
    assert list(found) == sorted(vectors) and all(np.array_equal(found[name], vectors[name]) for name in vectors)
    with np.load(tmp_path / "vectors.npz") as content:
        assert content["vectors"].dtype == np.float32 and content["levels"].tolist() == [0, 2, 5]
    header, *rows = csv.reader((tmp_path / "vectors.csv").read_text(encoding="utf-8").splitlines())
    assert header == ["case", "level1_0", "level1_1", "level2_0", "level2_1", "level2_2"]
    assert {name: [np.float32(v) for v in row] for name, *row in rows} == {n: list(v) for n, v in vectors.items()}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["vectors.csv", "vectors.npz"]


def test_write_vectors__of_cases_with_odd_names(tmp_path: Path) -> None:
    names = ["=cmd()", "a|b", 'x_1&2%, "y"']
    write_vectors(tmp_path, dict.fromkeys(names, -np.ones(1, np.float32)), [0, 1], as_csv=True)
    _, *rows = csv.reader((tmp_path / "vectors.csv").read_text(encoding="utf-8").splitlines())
    assert rows == [["'=cmd()", "-1"], ["a|b", "-1"], ['x_1&2%, "y"', "-1"]]
    assert list(read_vectors(tmp_path / "vectors.npz")) == names
