from __future__ import annotations

import json
from pathlib import Path

import blosc2
import numpy as np
import pytest

from nnssl.data.body_mask import body_mask_ct, body_mask_normalized_ct, save_body_mask
from tests.phantoms import ct_volume

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
    expected = [np.percentile(channel[body], (0.5, 99.5)).tolist() for channel in image]
    np.testing.assert_allclose(stored.schunk.vlmeta["intensity_range"], expected, rtol=1e-6)
