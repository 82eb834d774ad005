from __future__ import annotations

import json
from pathlib import Path

import blosc2
import numpy as np
import pytest

from nnssl.core.errors import BadCase
from nnssl.core.geometry import bounding_box
from nnssl.data.check_case import (
    body_mask_ct,
    body_mask_normalized_ct,
    check_image,
    check_label,
    load_case,
    orientation,
)
from nnssl.data.raw import RawCase
from nnssl.data.storage import save_body_mask
from tests.phantoms import ct_volume, write_volume

GOOD = np.random.default_rng(0).normal(size=(1, 5, 6, 7)).astype(np.float32)
SPACING = (3.0, 1.0, 1.0)


def _with(index: tuple[int, ...], value: float) -> np.ndarray:
    image = GOOD.copy()
    image[index] = value
    return image


@pytest.mark.parametrize(
    ("image", "ct_channel", "reason"),
    [
        (np.zeros((1, 0, 6, 7)), None, "empty: no voxels"),
        (np.zeros((1, 5, 6, 7)), None, "empty: every voxel is 0"),
        (np.zeros((1, 5, 6, 7)), 0, "empty: every voxel is 0"),
        (np.full((1, 5, 6, 7), -1000.0), 0, "all air"),
        (GOOD - 800, 0, "all air"),
        (_with((0, 1, 2, 3), np.nan), None, "non-finite"),
        (_with((0, 1, 2, 3), -np.inf), 0, "non-finite"),
        (np.concatenate([GOOD, GOOD]), None, "wrong number of channels: 2, dataset.json names 1"),
        (GOOD[:, :1], None, "2-D: 1x6x7 voxels"),
        (GOOD[:, :, :3], None, "too small: 5x3x7 voxels"),
    ],
)
def test_check_image__reasons(image: np.ndarray, ct_channel: int | None, reason: str) -> None:
    with pytest.raises(BadCase, match=reason):
        check_image(image, SPACING, 1, ct_channel)


def test_check_image__healthy() -> None:
    check_image(GOOD, SPACING, 1, 0)
    check_image(np.concatenate([GOOD, 0 * GOOD]), SPACING, 2, None)  # one missing sequence, filled with zeros


def test_check_image__spacing() -> None:
    with pytest.raises(BadCase, match="spacing"):
        check_image(GOOD, (1.0, 0.0, 1.0), 1, None)


def test_check_label__reasons() -> None:
    check_label(np.zeros((1, 5, 6, 7)), GOOD)
    with pytest.raises(BadCase, match="label of another shape: 5x6x6 voxels, the image has 5x6x7"):
        check_label(np.zeros((1, 5, 6, 6)), GOOD)
    with pytest.raises(BadCase, match="in the label"):
        check_label(np.full((1, 5, 6, 7), np.nan), GOOD)


@pytest.mark.parametrize(
    ("values", "said"),
    [([0, 1, 2, 4], None), ([0, 3], "values 3,"), ([-1, 0], "values -1,"), ([0.5, 1, 2.25], "values 0.5, 2.25,"),
     ([1e9, 4.0000005, 5], "values 4.00000048, 5, 1e\\+09,"), ([np.inf, 1], "non-finite"),
     (range(5, 30), "13, 14, ...,")],
)  # fmt: skip
def test_check_label__values(values: list[float], said: str | None) -> None:
    """Of a dataset with the labels 1 and 2 and the ignored one 4."""
    label = np.resize(np.asarray(values, np.float32), GOOD.shape)
    if said is None:
        check_label(label, GOOD, {0, 1, 2, 4})
        return
    with pytest.raises(BadCase, match=said):
        check_label(label, GOOD, {0, 1, 2, 4})


def test_load_case__why_it_cannot_be_read(tmp_path: Path) -> None:
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    (tmp_path / "bad.nii.gz").write_bytes(b"no image")
    write_volume(tmp_path / "a.nii.gz", GOOD[0], SPACING)
    write_volume(tmp_path / "b.nii.gz", GOOD[0, 1:], SPACING)
    write_volume(tmp_path / "c.nii.gz", GOOD[0], (1.0, 1.0, 1.0))
    for names, reason in (
        (("bad",), "unreadable image"),
        (("missing",), "unreadable image"),
        (("a", "b"), "^channels of different shapes$"),
        (("a", "c"), "^channels of different spacings$"),
    ):
        with pytest.raises(BadCase, match=reason) as caught:
            load_case(RawCase("x", tuple(str(tmp_path / f"{n}.nii.gz") for n in names)), SimpleITKIO, len(names), None)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_load_case__non_finite_in_a_file(tmp_path: Path, ending: str, value: float) -> None:
    """ITK reads NaN in NIfTI files as zero without a word."""
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    file = tmp_path / f"x{ending}"
    write_volume(file, _with((0, 1, 2, 3), value)[0], SPACING)
    with pytest.raises(BadCase, match="non-finite"):
        load_case(RawCase("x", (str(file),)), SimpleITKIO, 1, None)


def test_load_case__four_dimensional_file_has_all_channels(tmp_path: Path) -> None:
    import SimpleITK as sitk
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    images = [sitk.GetImageFromArray(GOOD[0]), sitk.GetImageFromArray(GOOD[0] + 1)]
    sitk.WriteImage(sitk.JoinSeries(images), str(tmp_path / "x.nii.gz"))
    loaded = load_case(RawCase("x", (str(tmp_path / "x.nii.gz"),)), SimpleITKIO, 2, None)
    assert loaded.image.shape == (2, 5, 6, 7)
    assert loaded.orientation == "LPS"


@pytest.mark.parametrize("reader_name", ["SimpleITKIO", "NibabelIO"])
def test_orientation__same_letters_from_both_libraries(tmp_path: Path, reader_name: str) -> None:
    from nnunetv2.imageio.reader_writer_registry import recursive_find_reader_writer_by_name

    reader = recursive_find_reader_writer_by_name(reader_name)
    directions = {"LPS": (1, 0, 0, 0, 1, 0, 0, 0, 1), "RAS": (-1, 0, 0, 0, -1, 0, 0, 0, 1)}
    for letters, direction in directions.items():
        write_volume(tmp_path / "x.nii.gz", GOOD[0], SPACING, direction)
        loaded = load_case(RawCase("x", (str(tmp_path / "x.nii.gz"),)), reader, 1, None)
        assert loaded.orientation == letters


def test_orientation__unknown_format() -> None:
    assert orientation({"spacing": (1, 1, 1)}) is None


REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "vox2vec.json").read_text())["body_mask"]


def test_body_mask_ct__reference_enclosed_air_stays_body() -> None:
    # The vector has axes (x, y, z) with x and y in-plane: 5x5x3 air, a block at 40 HU and -900 inside it.
    assert "full block" in REFERENCE["case_enclosed_air"]
    block = np.zeros((5, 5, 3), dtype=bool)
    block[1:4, 1:4, :] = True
    hu = np.where(block, 40, -1000)
    hu[2, 2, 1] = -900
    np.testing.assert_array_equal(body_mask_ct(hu.transpose(2, 1, 0)), block.transpose(2, 1, 0))


def test_body_mask_ct__reference_body_touches_the_corner() -> None:
    hu = np.full((4, 4, 3), 40)
    hu[3, 3, :] = -1000
    assert body_mask_ct(hu.transpose(2, 1, 0)).sum() == REFERENCE["case_body_touching_corner_mask_sum"]


def test_body_mask_ct__gas_open_to_first_slice_is_outside_only_through_in_plane_air() -> None:
    """No air is put before the first slice: a tube that ends there is enclosed, as in the published code."""
    hu = np.full((3, 5, 5), 40)
    hu[:, 2, 2] = -1000
    assert body_mask_ct(hu).all()
    hu[0, 2, :] = -1000  # a channel to the side of the first slice
    assert not body_mask_ct(hu)[:, 2, 2].any()


def test_body_mask_ct__flood_passes_diagonally() -> None:
    hu = np.full((1, 4, 4), 40)
    hu[0, 0, 0] = hu[0, 1, 1] = hu[0, 2, 2] = -1000
    assert body_mask_ct(hu).sum() == 13


def test_body_mask_ct__threshold_is_not_air() -> None:
    assert body_mask_ct(np.full((2, 3, 3), -500.0)).all()
    assert not body_mask_ct(np.full((2, 3, 3), -500.1)).any()


def test_body_mask_ct__phantom_keeps_the_lungs() -> None:
    hu, _ = ct_volume((12, 40, 40), np.random.default_rng(0))
    body = body_mask_ct(hu)
    assert (hu < -700)[body].any()  # lung
    assert (hu[~body] == -1000).all()


@pytest.mark.parametrize("window", [(-1350.0, 1000.0), (-1000.0, 400.0)])
def test_body_mask_normalized_ct__wide_window_gives_the_same(window: tuple[float, float]) -> None:
    hu, _ = ct_volume((8, 40, 40), np.random.default_rng(1))
    properties = {"mean": 30.0, "std": 200.0, "percentile_00_5": window[0], "percentile_99_5": window[1]}
    values = ((np.clip(hu, *window) - 30.0) / 200.0).astype(np.float32)
    np.testing.assert_array_equal(body_mask_normalized_ct(values, properties), body_mask_ct(hu))


def test_body_mask_normalized_ct__narrow_window_loses_the_fat_rim_only() -> None:
    hu, _ = ct_volume((8, 40, 40), np.random.default_rng(1))
    properties = {"mean": 60.0, "std": 50.0, "percentile_00_5": -50.0, "percentile_99_5": 250.0}
    values = (np.clip(hu, -50.0, 250.0) - 60.0) / 50.0
    found, body = body_mask_normalized_ct(values, properties), body_mask_ct(hu)
    assert (body | ~found).all()
    assert ((hu[body & ~found] < -35) & (hu[body & ~found] > -200)).all()  # fat, not the enclosed lungs
    assert found.sum() > 0.6 * body.sum()


def test_save_body_mask__reader_can_draw_a_uniform_voxel_from_one_slice(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    body = rng.random((9, 70, 30)) < 0.3
    image = rng.normal(size=(2, *body.shape)).astype(np.float32)
    save_body_mask(tmp_path / "case.b2nd", body, image)
    stored = blosc2.open(str(tmp_path / "case.b2nd"), mode="r")
    assert stored.dtype == np.uint8
    np.testing.assert_array_equal(stored[:], body)
    assert stored.schunk.vlmeta["slice_counts"] == body.sum(axis=(1, 2)).tolist()
    assert stored.schunk.vlmeta["body_box"] == [side.tolist() for side in bounding_box(body)]
    expected = [np.percentile(channel[body], (0.5, 99.5)).tolist() for channel in image]
    np.testing.assert_allclose(stored.schunk.vlmeta["intensity_range"], expected, rtol=1e-6)
