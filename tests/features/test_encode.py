from __future__ import annotations

import numpy as np
import pytest
import torch

from nnssl.features.match import encode_image
from tests.features.encoders import Averages, averaging_encoder

TILE = (8, 16, 16)


def _values(*size: int) -> np.ndarray:
    return np.random.default_rng(0).random((1, *size), dtype=np.float32)


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
