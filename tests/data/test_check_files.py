from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient

from nnssl.core.errors import BadCase
from nnssl.data.check_files import array_grid, check_files, refuse_too_large_at
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
        assert "a.nii.gz lies elsewhere than a_0000.nii.gz: " in warnings[0]
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
