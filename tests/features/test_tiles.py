from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import nnssl
from nnssl.core.errors import BadCase, UserError
from nnssl.features.body import body_vector
from nnssl.features.components import Projection
from nnssl.features.tiles import dense_features, dense_shape, encode_image, tile_image
from tests.features.encoders import Averages, averaging_encoder
from tests.features.models import STRIDES, averaging_model
from tests.pretrainings import tiny_plans, write_pretraining

TILE = (8, 16, 16)
SIZES = [(40, 70, 53), (16, 32, 32), (5, 9, 40)]


def _values(*size: int) -> np.ndarray:
    return np.random.default_rng(0).random((1, *size), dtype=np.float32)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("level", [None, 0, 1, 2])
def test_dense_features__tiles_give_the_features_of_the_whole_image(
    size: tuple[int, int, int], level: int | None
) -> None:
    """The network sees one voxel around a cell, less than what is cut off the tiles; zeros lie around both."""
    model, values = averaging_model(), _values(*size)
    tiled = dense_features(model, values, level)
    whole = model(torch.from_numpy(values)[None])
    if level is None:
        (sz, sy, sx), dense = model.strides[0], model.dense(torch.from_numpy(values)[None])
        expected = dense[0, :, ::sz, ::sy, ::sx]
    else:
        expected = whole[level][0]
    assert tiled.dtype == np.float16 and tiled.shape == expected.shape == dense_shape(model, size, level)
    np.testing.assert_allclose(tiled, expected.numpy(), rtol=0, atol=1e-3)


def test_dense_features__whole_and_tiled_agree_up_to_the_border_of_what_the_network_sees() -> None:
    """Tiles so small that the border is narrower than what a cell sees: the difference shows at the seams only."""
    model, values = averaging_model(patch_size=(4, 8, 8), strides=((1, 1, 1), (4, 8, 8))), _values(4, 8, 24)
    tiled, whole = dense_features(model, values, 0), model(torch.from_numpy(values)[None])[0][0].numpy()
    wrong = (np.abs(tiled - whole) > 1e-2).any((0, 1, 2))
    assert set(np.flatnonzero(wrong)) <= {7, 8, 15, 16} and wrong.any()


def test_dense_features__the_network_sees_tiles_only() -> None:
    model = averaging_model()
    dense_features(model, _values(50, 80, 100))
    assert isinstance(model.backbone, Averages)
    assert set(model.backbone.seen) == {torch.Size([1, 1, 16, 32, 32])} and len(model.backbone.seen) > 20


def test_dense_features__projected_are_the_projections_of_all_features() -> None:
    model, values, rng = averaging_model(), _values(20, 50, 53), np.random.default_rng(1)
    projection = Projection(rng.random(9), rng.normal(size=(2, 9)), np.ones(2), None, "")
    expected = np.einsum("kc,czyx->kzyx", projection.components, dense_features(model, values))
    expected -= (projection.components @ projection.mean)[:, None, None, None]
    np.testing.assert_allclose(dense_features(model, values, projection=projection), expected, atol=5e-3)
    of_level = Projection(rng.random(3), rng.normal(size=(2, 3)), np.ones(2), 1, "")
    assert dense_features(model, values, 1, projection=of_level).shape == (2, 10, 13, 14)


def test_dense_features__writes_into_what_it_is_given(tmp_path: Path) -> None:
    model, values = averaging_model(), _values(20, 50, 53)
    file = np.lib.format.open_memmap(tmp_path / "map.npy", "w+", np.float16, dense_shape(model, values.shape[1:], None))
    assert dense_features(model, values, out=file) is file
    np.testing.assert_array_equal(file, dense_features(model, values))


def test_dense_features__other_channels_than_the_network_reads() -> None:
    with pytest.raises(UserError, match="takes 1 channels of normalised values, not 2"):
        dense_features(averaging_model(), np.zeros((2, 8, 32, 40), dtype=np.float32))


def test_dense_features__large_values_stay_finite() -> None:
    model = averaging_model()
    projection = Projection(np.zeros(9), np.full((1, 9), 1e6), np.ones(1), None, "")
    assert np.isfinite(dense_features(model, _values(8, 32, 40), projection=projection)).all()


def test_dense_features__one_tile_is_the_network_itself(tmp_path: Path) -> None:
    """A U-Net with instance normalisation, on an image of the patch size."""
    model = nnssl.load_pretrained(write_pretraining(tmp_path, tiny_plans(patch_size=[16, 32, 32])))
    values = _values(16, 32, 32)
    expected = model.dense(torch.from_numpy(values)[None])[0].half()
    assert torch.equal(torch.from_numpy(dense_features(model, values)), expected)


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5, 0.8])
@pytest.mark.parametrize("size", SIZES)
def test_cells__every_cell_is_used_once(size: tuple[int, int, int], overlap: float) -> None:
    tiling = tile_image(size, (16, 32, 32), STRIDES, overlap)
    for stride in STRIDES:
        used = np.zeros([-(-n // s) for n, s in zip(size, stride, strict=True)], dtype=int)
        for box in tiling.boxes:
            source, target = tiling.cells(box, stride)
            used[target] += 1
            for axis in range(3):
                shift = target[axis].start - source[axis].start
                assert shift == box.start[axis] // stride[axis] and source[axis].start >= 0
                assert source[axis].stop * stride[axis] <= tiling.extent[axis]
        assert (used == 1).all()


@pytest.mark.parametrize("size", [(20, 40, 37), (8, 17, 30), (9, 16, 33)])
@pytest.mark.parametrize("overlap", [0.5, 0.7])
def test_encode_image__tiles_give_the_cells_of_the_whole_image(size: tuple[int, int, int], overlap: float) -> None:
    values, encoder = _values(*size), averaging_encoder()
    encoded = encode_image(encoder, values, TILE, overlap=overlap)
    whole = encoder(torch.from_numpy(values)[None])
    assert encoded.size == size and encoded.strides == encoder.strides
    for name, cells in encoded.maps.items():
        assert cells.dtype == torch.float16 and cells.shape == whole[name].shape[1:]
        expected = tuple(-(-n // s) for n, s in zip(size, encoder.strides[name], strict=True))
        assert cells.shape[1:] == expected
        torch.testing.assert_close(cells.float(), whole[name][0], rtol=0, atol=1e-3)


def test_encode_image__borders_of_tiles_are_not_used() -> None:
    """Without an overlap the zeros around every tile show."""
    values, encoder = _values(16, 32, 32), averaging_encoder()
    whole = encoder(torch.from_numpy(values)[None])["fine"][0]
    errors = [
        float((encode_image(encoder, values, TILE, overlap=o).maps["fine"].float() - whole).abs().max())
        for o in (0.0, 0.5)
    ]
    assert errors[0] > 0.05 > 1e-3 > errors[1]


def test_encode_image__the_network_sees_tiles_only() -> None:
    encoder = averaging_encoder()
    encode_image(encoder, _values(30, 40, 50), TILE)
    assert isinstance(encoder.backbone, Averages)
    assert set(encoder.backbone.seen) == {torch.Size([1, 1, *TILE])} and len(encoder.backbone.seen) > 20


def test_encode_image__an_image_smaller_than_the_tile_is_padded_to_it() -> None:
    values, encoder = _values(5, 9, 30), averaging_encoder()
    encoded = encode_image(encoder, values, (7, 15, 16))  # rounded up to what the network divides by
    assert isinstance(encoder.backbone, Averages)
    assert set(encoder.backbone.seen) == {torch.Size([1, 1, 8, 16, 16])}
    padded = np.pad(values, [(0, 0), (0, 3), (0, 7), (0, 2)])
    whole = encoder(torch.from_numpy(padded)[None])["fine"][0, :, :5, :5, :15]
    torch.testing.assert_close(encoded.maps["fine"].float(), whole, rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", SIZES)
def test_body_vector__is_the_mean_over_the_body_of_the_whole_image(size: tuple[int, int, int]) -> None:
    model, rng = averaging_model(), np.random.default_rng(0)
    values = rng.random((1, *size), dtype=np.float32)
    body = rng.random(size) < 0.3
    body[: size[0] // 2] = False
    expected = model.dense(torch.from_numpy(values)[None])[0].numpy()[:, body].mean(1, dtype=np.float64)
    found = body_vector(model, values, body)
    assert found.dtype == np.float32 and found.shape == (9,)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(body_vector(model, values, body, level=1), expected[3:6], atol=1e-5)


def test_body_vector__computes_no_tile_without_body() -> None:
    model, values = averaging_model(), np.zeros((1, 40, 128, 128), dtype=np.float32)
    body = np.zeros(values.shape[1:], dtype=bool)
    with pytest.raises(BadCase, match="all air"):
        body_vector(model, values, body)
    body[0, 0, 0] = True
    body_vector(model, values, body)
    assert len(model.backbone.seen) == 1  # type: ignore[arg-type]


class _Seamed(torch.nn.Module):
    """Like a network that sees its whole tile: it answers with the tile's mean."""

    strides: ClassVar[dict[str, Any]] = {"fine": (1, 2, 2)}
    dims: ClassVar[dict[str, int]] = {"fine": 1}
    backbone = SimpleNamespace(divisor=(2, 2, 2))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"fine": x.mean((2, 3, 4), keepdim=True).expand(-1, -1, 8, 4, 4)}


def test_encode_image__blended_tiles_have_no_seams() -> None:
    values = np.linspace(0, 10, 31, dtype=np.float32)[None, :, None, None] * np.ones((1, 1, 9, 8), np.float32)
    steps = {}
    for blend in (False, True):
        encoded = encode_image(_Seamed(), values, (8, 8, 8), blend=blend)  # type: ignore[arg-type]
        steps[blend] = float(np.abs(np.diff(encoded.maps["fine"][0, :, 1, 1].float().numpy()[:24])).max())
    assert steps[True] < 0.6 * steps[False]


def test_encode_image__blended_or_not_is_the_same_where_tiles_agree() -> None:
    class Local(_Seamed):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"fine": torch.nn.functional.avg_pool3d(x, (1, 2, 2))}

    values = np.random.default_rng(0).normal(size=(1, 13, 11, 9)).astype(np.float32)
    apart, blended = (
        encode_image(Local(), values, (8, 8, 8), blend=blend).maps["fine"].numpy()  # type: ignore[arg-type]
        for blend in (False, True)
    )
    np.testing.assert_allclose(apart, blended, atol=3e-3)
