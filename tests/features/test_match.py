from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nnssl.features.match import (
    Matches,
    distance_back,
    interpolated_lengths,
    match_points,
    read_encodings,
    read_vectors,
    share_as_good,
    similarity_map,
)
from nnssl.features.tiles import EncodedImage, encode_image
from nnssl.networks.contrastive import l2_normalise
from tests.analysis.images import all_voxels, encoded
from tests.features.encoders import averaging_encoder

REFERENCE = json.loads((Path(__file__).parent.parent / "reference" / "sam.json").read_text())["matching"]["example"]


def _with_cosines(cosines: list[float]) -> Tensor:
    """(2, 1, 1, n) unit vectors with these cosines to (1, 0)."""
    c = torch.tensor(cosines)
    return torch.stack([c, (1 - c**2).sqrt()])[:, None, None].half()


def _pair(size: tuple[int, int, int], shift: tuple[int, int, int]) -> tuple[EncodedImage, EncodedImage]:
    """A smooth random image, and the same with so many voxels of something else before it."""
    rng = np.random.default_rng(1)
    whole = torch.from_numpy(rng.random((1, 1, *(n // 2 for n in size)), dtype=np.float32))
    image = F.interpolate(whole, size=size, mode="trilinear")[0].numpy()
    moved = rng.random((1, *np.add(size, shift)), dtype=np.float32)
    place = (slice(None), *(slice(s, None) for s in shift))
    moved[place] = image
    encoder = averaging_encoder()
    return encode_image(encoder, image, (16, 32, 32)), encode_image(encoder, moved, (16, 32, 32))


def test_match_points__reference() -> None:
    strides = {"fine": (1, 1, 2), "coarse": (1, 1, 2)}
    query = EncodedImage({name: _with_cosines([1.0]) for name in strides}, dict(strides), (1, 1, 2))
    maps = {name: _with_cosines(REFERENCE[f"{name}_similarity"]) for name in strides}
    key = EncodedImage(maps, dict(strides), (1, 1, 6))
    np.testing.assert_allclose(similarity_map(query, key, [0, 0, 0])[0][0, 0], REFERENCE["score"], atol=1e-3)
    found = match_points(query, key, [[0, 0, 0]])
    assert found.points.tolist() == [[0.0, 0.0, REFERENCE["argmax"] * 2 + 0.5]]
    assert found.similarity[0] == pytest.approx(max(REFERENCE["score"]), abs=1e-3)


def test_match_points__finds_where_an_image_was_moved_to() -> None:
    shift = (2, 8, 4)
    query, key = _pair((18, 30, 34), shift)
    points = np.random.default_rng(2).uniform([4, 7, 7], [13, 22, 26], (40, 3))  # away from what is around the image
    found = match_points(query, key, points)
    assert (np.abs(found.points - points - shift) <= 0.5 * np.array(key.strides["fine"])).all()
    centres = (np.floor((points + 0.5) / query.strides["fine"]) + 0.5) * query.strides["fine"] - 0.5
    np.testing.assert_array_equal(found.points, centres + shift)
    np.testing.assert_allclose(found.similarity, 1, atol=2e-2)
    assert distance_back(query, key, centres, found, [2.0, 1.0, 1.0]).max() == 0


def test_distance_back__in_millimetres() -> None:
    query, key = _pair((18, 30, 34), (2, 8, 4))
    (centre,) = match_points(query, query, [[6, 14.5, 20.5]]).points
    matches = match_points(query, key, [centre])
    away = centre + np.array([1, 2, 0])
    assert distance_back(query, key, [away], matches, [3.0, 2.0, 1.0])[0] == pytest.approx(5.0)


def test_match_points__parts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = _pair((18, 30, 34), (2, 8, 4))
    points = np.random.default_rng(2).uniform(0, [17, 29, 33], (11, 3))
    whole, heat = match_points(query, key, points), similarity_map(query, key, points[0])[0]
    monkeypatch.setattr("nnssl.features.match._CELLS", 3 * 19 * 19)
    monkeypatch.setattr("nnssl.features.match._POINTS", 4)
    parts = match_points(query, key, points)
    np.testing.assert_array_equal(whole.points, parts.points)
    np.testing.assert_allclose(whole.similarity, parts.similarity, atol=1e-6)
    np.testing.assert_allclose(similarity_map(query, key, points[0])[0], heat, atol=1e-6)


def test_similarity_map__has_its_largest_value_at_the_match() -> None:
    query, key = _pair((18, 30, 34), (2, 8, 4))
    point = np.array([7.3, 12.1, 20.9])
    (heat, best), found = similarity_map(query, key, point), match_points(query, key, [point])
    np.testing.assert_array_equal(best.points, found.points)
    assert heat.shape == key.maps["fine"].shape[1:]
    cell = np.unravel_index(heat.argmax(), heat.shape)
    np.testing.assert_allclose((np.array(cell) + 0.5) * key.strides["fine"] - 0.5, found.points[0])
    assert heat.max() == pytest.approx(found.similarity[0])


def test_similarity_map__coarse_cells_are_interpolated_as_between_centres() -> None:
    torch.manual_seed(0)
    coarse = l2_normalise(torch.randn(4, 3, 2, 5), dim=0)
    fine = l2_normalise(torch.randn(4, 6, 8, 20), dim=0)
    key = EncodedImage(
        {"fine": fine.half(), "coarse": coarse.half()}, {"fine": (1, 1, 1), "coarse": (2, 4, 4)}, (6, 8, 20)
    )
    vectors = read_encodings(key, np.array([[1.0, 2.0, 3.0]]))
    wide = l2_normalise(F.interpolate(coarse[None], size=(6, 8, 20), mode="trilinear")[0], dim=0)
    expected = (torch.einsum("nd,dzyx->zyx", vectors["fine"], fine)
                + torch.einsum("nd,dzyx->zyx", vectors["coarse"], wide)) / 2  # fmt: skip
    np.testing.assert_allclose(similarity_map(key, key, [1.0, 2.0, 3.0])[0], expected, atol=2e-3)
    # the point itself is read in the same way
    torch.testing.assert_close(vectors["coarse"][0], wide[:, 1, 2, 3], rtol=0, atol=2e-3)


def test_interpolated_lengths__kept_ones_change_nothing_and_are_those_of_interpolated_vectors() -> None:
    image = encode_image(
        averaging_encoder(), np.random.default_rng(0).normal(size=(1, 34, 12, 14)).astype(np.float32), (16, 8, 8)
    )
    lengths = interpolated_lengths(image)
    assert lengths.keys() == {"coarse"} and lengths["coarse"].shape == image.maps["fine"].shape[1:]
    assert (lengths["coarse"] < 1.001).all() and lengths["coarse"].min() < 0.99, "shorter between unlike cells"
    kept = replace(image, lengths=lengths)
    for point in ((3, 5, 7), (33, 0, 13)):
        np.testing.assert_array_equal(similarity_map(image, kept, point)[0], similarity_map(image, image, point)[0])


def test_match_points__a_cell_that_ends_behind_the_image_gives_a_point_inside() -> None:
    encoder = averaging_encoder(fine=(2, 4, 4), coarse=(4, 8, 8))
    values = np.random.default_rng(0).random((1, 9, 17, 21), dtype=np.float32)
    encoded = encode_image(encoder, values, (8, 16, 16))
    found = match_points(encoded, encoded, [[8, 16, 20]])
    assert found.points.tolist() == [[8.0, 16.0, 20.0]]


def test_match_points__one_map_is_enough() -> None:
    query, key = _pair((18, 30, 34), (2, 8, 4))
    for image in (query, key):
        del image.maps["coarse"]
    found = match_points(query, key, [[6, 14.5, 20.5]])
    assert isinstance(found, Matches) and found.points.tolist() == [[8, 22.5, 24.5]]


def test_read_vectors__centres_of_cells_are_read_as_they_are_and_between_them_it_is_linear() -> None:
    image = encoded()
    read = read_vectors(image, np.array([[2, 3, 4], [2, 0.5, 2.5], [2, 1.5, 2.5]]))
    torch.testing.assert_close(torch.from_numpy(read["fine"][0]), image.maps["fine"][:, 2, 3, 4].float())
    cells = image.maps["level 1"][:, 2].float()
    torch.testing.assert_close(torch.from_numpy(read["level 1"][1]), cells[:, 0, 1])
    torch.testing.assert_close(torch.from_numpy(read["level 1"][2]), (cells[:, 0, 1] + cells[:, 1, 1]) / 2)


def test_read_vectors__many_points_come_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    image, points = encoded(), all_voxels((6, 8, 10))
    whole = read_vectors(image, points)
    monkeypatch.setattr("nnssl.features.match._READ", 7)
    for name, vectors in read_vectors(image, points).items():
        np.testing.assert_array_equal(vectors, whole[name])


def test_share_as_good__counts_to_two_decimals() -> None:
    similarity = np.array([[0.9, 0.896, 0.894], [0.2, 0.9, -1.0]], dtype=np.float32)
    assert share_as_good(similarity) == 0.5
    assert share_as_good(np.full((2, 3), 0.3, np.float32)) == 1.0
