from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torch.nn.functional as F

from nnssl.analysis.match import Match, draw_match, match
from nnssl.checkpoints.pretrained import PretrainedEncoder
from nnssl.checkpoints.runs import Run
from nnssl.core.errors import UserError
from nnssl.features.images import PreparedImage
from tests.analysis.images import geometry
from tests.features.encoders import averaging_encoder
from tests.pretrainings import CT_JSON, tiny_plans, write_pretraining

SPACING = (0.75, 0.75, 1.5)  # (x, y, z); the plans' is twice as much
DIRECTION = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)
SHIFT = np.array([8, 16, 4])  # (x, y, z) voxels
MODEL = "checkpoint of another test"


def _write(file: Path, array: np.ndarray, origin: tuple[float, float, float]) -> sitk.Image:
    image = sitk.GetImageFromArray(array.astype(np.int16))
    image.SetSpacing(SPACING)
    image.SetOrigin(origin)
    image.SetDirection(DIRECTION)
    sitk.WriteImage(image, str(file))
    return image


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[sitk.Image, sitk.Image]:
    """`query` and `key` in tmp_path: the same content, which begins SHIFT voxels later in the key image."""
    rng = np.random.default_rng(0)
    noise = torch.from_numpy(rng.uniform(1, 400, (1, 1, 8, 16, 16)))
    content = F.interpolate(noise, scale_factor=4, mode="trilinear")[0, 0].numpy()  # (32, 64, 64)
    before = [(int(s), 0) for s in SHIFT[::-1]]
    moved = np.pad(content, before, constant_values=-1000)
    plans = tiny_plans(patch_size=[8, 16, 16], transpose_forward=[0, 2, 1], transpose_backward=[0, 2, 1])
    pretrained = PretrainedEncoder(
        Path(MODEL), "sam", plans, "3d_fullres", CT_JSON, averaging_encoder(), {}, (8, 16, 16), "LPS"
    )
    monkeypatch.setattr("nnssl.features.model.open_run", lambda model: Run(Path(model), {"method": "sam"}))
    monkeypatch.setattr("nnssl.features.model.pixel_encoder_of", lambda content, path: pretrained)
    return (
        _write(tmp_path / "query_0000.nii.gz", content, (-40.0, 20.0, 100.0)),
        _write(tmp_path / "key_0000.nii.gz", moved, (15.0, -5.0, 7.0)),
    )


def _match(folder: Path, point: Any, **options: Any) -> Match:
    return match(MODEL, folder / "query", folder / "key_0000.nii.gz", point, device="cpu", **options)


@pytest.mark.parametrize("cell", [(5, 8, 11), (8, 5, 6)])
def test_match__recovers_a_known_shift_in_millimetres_and_voxels(
    tmp_path: Path, images: tuple[sitk.Image, sitk.Image], cell: tuple[int, int, int]
) -> None:
    """Files, nnU-Net's preprocessing with transpose and resampling, tiles, matching, and back."""
    query, key = images
    # the centre of a cell of (2, 2, 1) voxels of the grid, (x, y, z), in voxels of the file, two for one of the grid
    voxel = (np.array(cell[::-1]) + 0.5) * [4, 4, 2] - 0.5
    expected = key.TransformContinuousIndexToPhysicalPoint((voxel + SHIFT).tolist())
    for options, point in (
        ({"voxel": True}, voxel),
        ({"voxel": True}, voxel + np.array([1.4, -1.4, 0.9])),  # elsewhere in the cell
        ({}, query.TransformContinuousIndexToPhysicalPoint(voxel.tolist())),
    ):
        found = _match(tmp_path, point, **options)
        np.testing.assert_allclose(found.key.voxel, voxel + SHIFT, atol=1e-4)
        np.testing.assert_allclose(found.key.world, expected, atol=1e-4)
        assert found.similarity > 0.98 and found.back_mm < 3
        np.testing.assert_allclose(found.cell_mm, [3.0, 3.0, 3.0])
        assert (found.query.name, found.key.name) == ("query", "key")
    np.testing.assert_allclose(found.query.voxel, voxel, atol=1e-4)
    assert found.back_mm == pytest.approx(0, abs=1e-3)


def test_match__ras_turns_x_and_y_of_what_goes_in_and_comes_out(
    tmp_path: Path, images: tuple[sitk.Image, sitk.Image]
) -> None:
    world = np.array(images[0].TransformContinuousIndexToPhysicalPoint([25.5, 33.5, 10.5]))
    lps = _match(tmp_path, world)
    ras = _match(tmp_path, world * [-1, -1, 1], ras=True)
    np.testing.assert_allclose(ras.key.voxel, lps.key.voxel)
    np.testing.assert_allclose(ras.key.world, lps.key.world * [-1, -1, 1])
    np.testing.assert_allclose(ras.query.world, world * [-1, -1, 1], atol=1e-4)


def test_match__draws_a_picture(tmp_path: Path, images: tuple[sitk.Image, sitk.Image]) -> None:
    _match(tmp_path, (25, 30, 10), voxel=True, output=tmp_path / "match.png")
    assert (tmp_path / "match.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not list(tmp_path.glob("*.writing"))


def test_match__a_point_that_is_not_in_the_image(tmp_path: Path, images: tuple[sitk.Image, sitk.Image]) -> None:
    with pytest.raises(UserError, match=r"point 70 30 10 is not in .*query, which in voxels is x -0\.5 to 63\.5, y "):
        _match(tmp_path, (70, 30, 10), voxel=True)
    with pytest.raises(UserError, match=r"which in mm is x .*--voxel"):
        _match(tmp_path, (0, 0, 0))


def test_match__other_orientations_are_a_warning(
    tmp_path: Path, images: tuple[sitk.Image, sitk.Image], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(CT_JSON))
    _match(tmp_path, (25, 30, 10), voxel=True)
    assert not caplog.messages
    turned = sitk.DICOMOrient(sitk.ReadImage(str(tmp_path / "key_0000.nii.gz")), "RAS")
    sitk.WriteImage(turned, str(tmp_path / "key_0000.nii.gz"))
    _match(tmp_path, (25, 30, 10), voxel=True)
    (warning,) = caplog.messages
    assert "(LPS): key (RAS) (1 of 2)" in warning and "DICOMOrient(image, 'LPS')" in warning


def test_match__says_where_every_place_is_as_good_as_the_best(
    tmp_path: Path, images: tuple[sitk.Image, sitk.Image], caplog: pytest.LogCaptureFixture
) -> None:
    """The network averages what it sees, and the key image shows the same everywhere."""
    _match(tmp_path, (25, 30, 10), voxel=True)
    assert "does not tell places apart" not in caplog.text
    same = np.full((32, 64, 64), 50)
    same[0, 0, 0] = 300  # a constant image is refused
    _write(tmp_path / "key_0000.nii.gz", same, (15.0, -5.0, 7.0))
    found = _match(tmp_path, (25, 30, 10), voxel=True)
    assert f"% of key is as similar to the point as the best place there ({found.similarity:.2f})" in caplog.text


def test_match__another_modality_is_refused_before_anything_is_read(
    tmp_path: Path, images: tuple[sitk.Image, sitk.Image], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(CT_JSON | {"channel_names": {"0": "T1"}}))
    with pytest.raises(UserError, match=r"MR \(T1\) in the images in .*, CT in .*--allow_other_intensities"):
        _match(tmp_path, (25, 30, 10), voxel=True)
    _match(tmp_path, (25, 30, 10), voxel=True, allow_other_intensities=True)
    (warning,) = caplog.messages
    assert "lets it pass" in warning


def test_match__a_folder_for_the_picture_that_does_not_exist_is_said_first(
    tmp_path: Path, images: tuple[sitk.Image, sitk.Image]
) -> None:
    with pytest.raises(UserError, match="-o does not exist"):
        match("no model", "no image", "no image", (0, 0, 0), output=tmp_path / "nowhere" / "match.png")


def test_match__a_method_without_pixel_encodings(tmp_path: Path) -> None:
    checkpoint = write_pretraining(tmp_path, tiny_plans(), method="vox2vec")
    with pytest.raises(UserError, match="give a checkpoint of lapn or sam"):
        match(checkpoint, "no image", "no image", (0, 0, 0))


def test_draw_match__writes_a_picture_in_one_piece(tmp_path: Path) -> None:
    where = geometry((14, 16, 12))
    image = PreparedImage("case", np.random.default_rng(0).random((1, 12, 16, 14), dtype=np.float32), where)
    similarity = np.random.default_rng(0).random((6, 8, 7), dtype=np.float32)
    draw_match(
        image, image, np.array([3.0, 4, 5]), np.array([6, 2, 1.5]), similarity, (2, 2, 2), tmp_path / "match.png"
    )
    assert [file.name for file in tmp_path.iterdir()] == ["match.png"]
    assert (tmp_path / "match.png").stat().st_size > 10_000
