from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient

from nnssl.core.errors import BadCase, DamagedFile
from nnssl.data.check_files import LARGEST, check_files, check_range, check_size, check_voxels, refuse_too_large_at
from nnssl.data.image_headers import array_grid
from nnssl.data.voxel_files import Voxels, find_voxels
from tests.bad_inputs.volumes import OBLIQUE, SHAPE, SPACING, labels, nifti_field, voxel, voxels, write

MIRRORED = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)
READERS = [SimpleITKIO, SimpleITKIOWithReorient, NibabelIO, NibabelIOWithReorient]


def _pair(folder: Path, **other: Any) -> tuple[str, str]:
    """An image, and its label with something else."""
    image = write(folder / "a_0000.nii.gz", voxels())
    return str(image), str(write(folder / "a.nii.gz", **{"values": labels(), **other}))


@pytest.mark.parametrize("reader", READERS)
def test_check_files__healthy_ones_have_headers_and_no_warnings(tmp_path: Path, reader: Any) -> None:
    image, label = _pair(tmp_path)
    checked = check_files((image, image), reader, label)
    assert checked.complete and checked.warnings == () and len(checked.headers) == 3
    properties = reader().read_images((image,))[1]
    size, spacing = array_grid(checked.headers[0], reader)
    assert size == list(reader().read_images((image,))[0].shape[1:])
    np.testing.assert_allclose(spacing, properties["spacing"], rtol=1e-6)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"origin": (-20.0, 15.0, 4.5)}, "its origin is 0.5 mm away"),
        ({"origin": (-20.0, 15.0, 4.001)}, None),  # rounding
        ({"direction": MIRRORED}, "its direction is turned by 174 degrees"),
        ({"direction": (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)}, "its direction is turned by 5.73 degrees"),
    ],
)
def test_check_files__a_label_elsewhere_is_warned_of(
    tmp_path: Path, reader: Any, other: dict[str, Any], said: str | None
) -> None:
    image, label = _pair(tmp_path, **other)
    warnings = check_files((image,), reader, label).warnings
    if said is None:
        assert warnings == ()
    else:
        assert "a.nii.gz is elsewhere than a_0000.nii.gz: " in warnings[0]
        if not reader.__name__.endswith("WithReorient") or "origin" in other:  # turned, they have other origins too
            assert said in warnings[0]


@pytest.mark.parametrize("reader", READERS)
def test_check_files__the_same_grid_stored_in_another_order(tmp_path: Path, reader: Any) -> None:
    """Readers that reorient make the same volume of both; for the others voxels do not belong together."""
    turned = np.asarray(OBLIQUE).reshape(3, 3) * [-1, 1, 1]
    corner = np.array([-20.0, 15.0, 4.0]) + np.asarray(OBLIQUE).reshape(3, 3)[:, 0] * SPACING[0] * (SHAPE[2] - 1)
    image, label = _pair(tmp_path, values=np.ascontiguousarray(labels()[:, :, ::-1]), direction=tuple(turned.ravel()),
                         origin=tuple(corner))  # fmt: skip
    assert bool(check_files((image,), reader, label).warnings) != reader.__name__.endswith("WithReorient")


@pytest.mark.parametrize("reader", READERS)
def test_check_files__channels_of_different_grids(tmp_path: Path, reader: Any) -> None:
    image, _ = _pair(tmp_path)
    others: list[tuple[dict[str, Any], str]] = [({"values": voxels()[1:]}, "shapes"),
                                                ({"spacing": (0.7, 0.8, 3.2)}, "spacings")]  # fmt: skip
    for other, said in others:
        second = write(tmp_path / "a_0001.nii.gz", **{"values": voxels(), **other})
        with pytest.raises(BadCase, match=f"^channels of different {said}$"):
            check_files((image, str(second)), reader)


def test_check_files__another_spacing_in_the_affine_is_a_doubt(tmp_path: Path) -> None:
    image, _ = _pair(tmp_path)
    nifti_field((80, "<f", 0.72))(Path(image))
    for reader in (SimpleITKIO, NibabelIO):
        (warning,) = check_files((image,), reader).warnings
        assert "0.72 x 0.8 x 3.1" in warning and "0.7 x 0.8 x 3.1" in warning


def test_check_files__units_are_those_of_the_reader(tmp_path: Path) -> None:
    """A header in micrometres: ITK turns them into mm, nibabel does not."""
    image, _ = _pair(tmp_path)
    nifti_field((123, "<b", 3))(Path(image))
    for reader in (SimpleITKIO, NibabelIO):
        (header,) = check_files((image,), reader).headers
        np.testing.assert_allclose(array_grid(header, reader)[1], reader().read_images((image,))[1]["spacing"])


def test_check_files__without_a_reader_only_what_is_needed_to_read_is_judged(tmp_path: Path) -> None:
    colours = str(write(tmp_path / "x.nrrd", np.stack([labels()] * 3, -1), vectors=True))
    check_files((colours,), None)
    os.mkfifo(tmp_path / "y.nrrd")
    for file, said in ((tmp_path / "y.nrrd", "FIFO"), (write(tmp_path / "z.nrrd", voxel(np.nan)), "non-finite")):
        with pytest.raises(BadCase, match=said):
            check_files((str(file),), None)


def test_check_files__all_volumes_of_a_case_share_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image, label = _pair(tmp_path)
    needed = 6200 * (2 + 4)  # as stored, and as float32
    monkeypatch.setattr("nnssl.data.check_files.memory_limit", lambda: needed)
    check_files((image,), SimpleITKIO)
    with pytest.raises(BadCase, match="too large: 31x20x10 voxels"):
        check_files((image, image), SimpleITKIO)
    with pytest.raises(BadCase, match="too large"):
        check_files((image,), SimpleITKIO, label)


def test_refuse_too_large_at__crops_as_nnunet_does(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.zeros((1, 40, 40, 40), np.float32)
    image[0, 10:20, 5:9, 3:33] = 1
    monkeypatch.setattr("nnssl.data.check_files.memory_limit", lambda: 500_000)
    arguments = ((40, 40, 40), (1.0, 1.0, 1.0), [0.5, 0.5, 0.5], 1)
    refuse_too_large_at(*arguments, image)
    with pytest.raises(BadCase, match="80x80x80 voxels at the plans' spacing"):
        refuse_too_large_at(*arguments)
    with pytest.raises(BadCase, match="80x80x80 voxels at the plans' spacing"):
        refuse_too_large_at(*arguments, np.ones_like(image))
    refuse_too_large_at((40, 40, 40), (1.0, 1.0, 1.0), None, 1)


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
