from __future__ import annotations

import numpy as np

from nnssl.analysis.labels import LabelVolume
from nnssl.analysis.matches import centres_of_labels, find_landmarks, places_of
from nnssl.analysis.matches_picture import fit_title
from nnssl.features.images import ImageGeometry, PreparedImage
from nnssl.features.match import EncodedImage
from tests.analysis.images import encoded, geometry

SIZE = (6, 8, 10)


def _image(name: str) -> PreparedImage:
    return PreparedImage(name, np.zeros((1, *SIZE), np.float32), geometry(SIZE[::-1]))


def test_centres_of_labels__of_those_that_occur() -> None:
    values = np.zeros(SIZE[::-1], dtype=np.int64)
    values[2:4, 1, 3] = 1
    values[0, 0, 0] = 3
    volume = LabelVolume(values, geometry(SIZE[::-1]))
    found = centres_of_labels(volume, {1: "liver", 2: "spine", 3: "corner"})
    assert found.names == ("liver", "corner") and found.sources == ((1, ""), (3, ""))
    np.testing.assert_allclose(found.points, np.array([[3, 1, 2.5], [0, 0, 0]]), atol=1e-9)
    cropped = centres_of_labels(LabelVolume(values, geometry(SIZE[::-1], crop=1)), {3: "corner"})
    assert cropped.names == () and cropped.points.shape == (0, 3)


def _pair(where: ImageGeometry) -> LabelVolume:
    values = np.zeros(SIZE[::-1], dtype=np.uint8)
    values[1:3, 4, 2] = values[8:10, 4, 2] = 7
    return LabelVolume(values, where)


def test_centres_of_labels__both_halves_of_a_pair() -> None:
    found = centres_of_labels(_pair(geometry(SIZE[::-1])), {7: "hippocampus"})
    assert found.names == ("hippocampus (left)", "hippocampus (right)")
    np.testing.assert_allclose(found.points, [[2, 4, 8.5], [2, 4, 1.5]], atol=1e-9)


def test_places_of__the_same_half_or_nowhere() -> None:
    one, pair = LabelVolume(np.zeros(SIZE[::-1], dtype=np.uint8), geometry(SIZE[::-1])), _pair(geometry(SIZE[::-1]))
    one.values[4:6, 4, 2] = 7
    np.testing.assert_allclose(places_of(pair, [(7, "right"), (7, "left"), (7, "")])[:, 2], [1.5, 8.5, 5], atol=1e-9)
    found = places_of(one, [(7, "right"), (7, ""), (1, "")])
    assert np.isnan(found[[0, 2]]).all()
    np.testing.assert_allclose(found[1], [2, 4, 4.5], atol=1e-9)
    assert places_of(one, []).shape == (0, 3)


def test_fit_title__in_lines_as_wide_as_the_column() -> None:
    assert fit_title("caudate_accumbens (left)", 1.75) == "caudate accumbens\n(left)"
    assert fit_title("caudate_accumbens (left)", 3.5) == "caudate accumbens (left)"


def test_find_landmarks__errors_are_in_mm_of_the_searched_image() -> None:
    image = encoded()
    # the same content one slice and two columns on
    maps = {"fine": image.maps["fine"].roll((1, 2), (1, 3))}
    query = EncodedImage({"fine": image.maps["fine"]}, {"fine": (1, 1, 1)}, SIZE)
    key = EncodedImage(maps, {"fine": (1, 1, 1)}, SIZE)
    points = np.array([[2.0, 3, 4], [3, 1, 5]])
    truth = np.array([[3.0, 4, 9], [np.nan] * 3])
    found = find_landmarks(query, key, _image("a"), _image("b"), points, truth)
    np.testing.assert_array_equal(found.points, points + np.array([1, 0, 2]))
    np.testing.assert_allclose(found.errors, [np.hypot(1.5, 3 * 2.0), np.nan])
    np.testing.assert_allclose(found.similarity, 1, atol=1e-3)
    np.testing.assert_allclose(found.back, 0, atol=1e-9)
