from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nnssl.features.match import interpolated_lengths
from nnssl.features.stored import (
    PooledEncoder,
    embedding_folder,
    has_embeddings,
    open_embeddings,
    pooling_factors,
    save_embeddings,
)
from nnssl.features.tiles import encode_image
from nnssl.networks.contrastive import l2_normalise
from tests.features.encoders import averaging_encoder
from tests.volumes import add_volume, make_folder


@pytest.mark.parametrize(
    ("stride", "spacing", "factors"),
    [
        ((1, 1, 1), (1.0, 1.0, 1.0), (4, 4, 4)),  # LAPN
        ((2, 2, 2), (2.0, 2.0, 2.0), (1, 1, 1)),  # SAM
        ((1, 2, 2), (5.0, 0.7, 0.7), (1, 2, 2)),
        ((4, 16, 16), (2.0, 2.0, 2.0), (1, 1, 1)),
    ],
)
def test_pooling_factors__make_cells_of_at_most_4_mm(
    stride: tuple[int, int, int], spacing: tuple[float, float, float], factors: tuple[int, int, int]
) -> None:
    assert pooling_factors(stride, spacing, 4.0) == factors


def test_pooled_encoder__averages_the_cells_of_the_whole_image_in_tiles_too() -> None:
    encoder = averaging_encoder((1, 2, 2), (2, 4, 4))
    image = np.random.default_rng(0).normal(size=(1, 11, 30, 25)).astype(np.float32)
    pooled = PooledEncoder(encoder, (2.0, 1.0, 1.0))
    assert pooled.strides == {"fine": (2, 4, 4), "coarse": (2, 4, 4)}
    whole = encoder(torch.from_numpy(image)[None])["fine"]
    expected = l2_normalise(F.avg_pool3d(whole, (2, 2, 2), ceil_mode=True, count_include_pad=False), dim=1)[0]
    in_tiles = encode_image(pooled, image, (8, 16, 16))
    assert in_tiles.maps["fine"].shape == (16, 6, 8, 7) and in_tiles.strides == pooled.strides
    torch.testing.assert_close(in_tiles.maps["fine"][:, :5, :7, :6].float(), expected[:, :5, :7, :6], atol=2e-3, rtol=0)
    norms = in_tiles.maps["fine"].float().norm(dim=0)
    torch.testing.assert_close(norms, torch.ones_like(norms), atol=2e-3, rtol=0)


def test_save_embeddings__are_read_as_they_were_and_made_anew_for_another_volume(tmp_path: Path) -> None:
    folder = make_folder(tmp_path)
    image = np.random.default_rng(0).normal(size=(1, 10, 14, 12)).astype(np.float32)
    add_volume(folder, "a.1", image)
    encoded = encode_image(averaging_encoder(), image, (8, 8, 8))
    assert not has_embeddings(folder, "a.1", "key")
    size = save_embeddings(folder, "a.1", "key", encoded)
    assert size == 2 * (16 * 10 * 7 * 6 + 12 * 5 * 4 * 3) + 4 * 10 * 7 * 6
    assert has_embeddings(folder, "a.1", "key") and not has_embeddings(folder, "a.1", "other")
    again = open_embeddings(folder, "a.1", "key")
    assert again.size == (10, 14, 12) and again.strides == encoded.strides
    assert all(torch.equal(again.maps[name], values) for name, values in encoded.maps.items())
    assert torch.equal(again.lengths["coarse"], interpolated_lengths(encoded)["coarse"])
    home = embedding_folder(folder, "key")
    assert home.parent == folder.images.parent and home.name == "nnUNetPlans_3d_fullres_embeddings_key"
    assert sorted(file.name for file in home.iterdir()) == [
        "a.1.coarse.npy", "a.1.coarse_lengths.npy", "a.1.fine.npy", "a.1.json"
    ]  # fmt: skip
    add_volume(folder, "a.1", image[:, :9])
    assert not has_embeddings(folder, "a.1", "key")
