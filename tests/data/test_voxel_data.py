from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from nnssl.core.errors import BadCase, DamagedFile
from nnssl.data.voxel_data import LARGEST, check_range, check_size, check_voxels
from nnssl.data.voxel_files import Voxels, find_voxels
from tests.bad_inputs.volumes import voxels, write


def _check(file: Path) -> Voxels:
    found = find_voxels(file)
    assert found is not None
    check_size(found)
    check_voxels(found)
    return found


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".nhdr", ".gipl"])
@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
def test_find_voxels__of_whole_files(tmp_path: Path, ending: str, compressed: bool, kind: type) -> None:
    if (ending, kind) == (".gipl", np.int32):
        pytest.skip("ITK does not write it")
    values: np.ndarray = voxels(kind if kind not in (np.uint8, np.uint16) else np.int16).astype(kind)
    found = _check(write(tmp_path / f"x{ending}", values, compressed))
    assert (found.count, found.dtype.newbyteorder("=")) == (values.size, np.dtype(kind))
    if not found.compressed:  # what is found are the voxels
        stored = np.fromfile(found.file, found.dtype, values.size, offset=found.start + found.skip)
        np.testing.assert_array_equal(stored.reshape(values.shape), values)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
def test_find_voxels__both_versions_and_byte_orders_of_nifti(tmp_path: Path, kind: type, order: str) -> None:
    header = kind.header_class(endianness=order)  # type: ignore[attr-defined]
    image = kind(voxels(np.float32).T, np.eye(4), header)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"before the voxels"))
    for name in ("x.nii", "x.nii.gz"):
        nibabel.save(image, tmp_path / name)
        found = _check(tmp_path / name)
        assert (found.count, found.dtype) == (6200, np.dtype(f"{order}f4")) and found.skip > 352


def test_find_voxels__unknown_formats_and_plain_files_named_like_compressed_ones(tmp_path: Path) -> None:
    assert find_voxels(tmp_path / "x.png") is None
    write(tmp_path / "x.nii", voxels(), False).rename(tmp_path / "x.nii.gz")
    assert not _check(tmp_path / "x.nii.gz").compressed


@pytest.mark.parametrize("compressed", [True, False])
def test_check__padding_is_allowed_and_a_second_volume_is_not(tmp_path: Path, compressed: bool) -> None:
    content = write(tmp_path / "x.nii", voxels(), False).read_bytes()
    for more, refused in ((0, False), (2880, False), (12400, True)):
        padded = content + bytes(more)
        (tmp_path / "y.nii").write_bytes(gzip.compress(padded) if compressed else padded)
        if refused:
            with pytest.raises(DamagedFile, match="more than the 12,400 bytes"):
                _check(tmp_path / "y.nii")
        else:
            _check(tmp_path / "y.nii")


def test_check__voxels_that_blocks_cut_in_two(tmp_path: Path) -> None:
    """1 MiB and the header's 352 bytes are no multiples of 8 bytes + 4."""
    values = np.zeros((90, 80, 70))
    values[-1, -1, -1] = np.nan
    image = nibabel.Nifti1Image(values.T, np.eye(4))
    image.header.set_data_offset(356)
    nibabel.save(image, tmp_path / "x.nii.gz")
    with pytest.raises(BadCase, match="non-finite"):
        _check(tmp_path / "x.nii.gz")


def test_check__values_are_scaled_before_they_are_judged(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.full((4, 5, 6), 7, np.int16), np.eye(4))
    for slope, refused in ((1e10, False), (1e12, True), (np.nan, False)):
        nibabel.save(image, tmp_path / "x.nii")
        content = bytearray((tmp_path / "x.nii").read_bytes())
        content[112:116] = np.float32(slope).tobytes()
        (tmp_path / "y.nii").write_bytes(content)
        if refused:
            with pytest.raises(BadCase, match=r"7e\+12"):
                _check(tmp_path / "y.nii")
        else:
            _check(tmp_path / "y.nii")


def test_check__voxels_in_another_file_that_is_none(tmp_path: Path) -> None:
    file = write(tmp_path / "x.mhd", voxels(), False)
    (tmp_path / "x.raw").unlink()
    with pytest.raises(DamagedFile, match=r"x.raw, which does not exist"):
        _check(file)


def test_check_range__the_bound_itself() -> None:
    check_range(-LARGEST, LARGEST)
    for ends in ((0.0, 1.01e12), (-1.01e12, 0.0)):
        with pytest.raises(BadCase, match="1e"):
            check_range(*ends)


def test_itk_reads_a_cut_file_as_if_it_were_whole(tmp_path: Path) -> None:
    """The reason for all of this; where it fails one day, ITK has been mended."""
    file = write(tmp_path / "x.nii.gz", voxels())
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert (sitk.GetArrayFromImage(sitk.ReadImage(str(file)))[-1] == 0).all()
    with pytest.raises(DamagedFile, match="cut"):
        _check(file)
