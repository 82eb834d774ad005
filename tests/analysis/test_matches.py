from __future__ import annotations

import numpy as np

from nnssl.analysis.matches import find_landmarks
from nnssl.features.images import PreparedImage
from nnssl.features.tiles import EncodedImage
from tests.analysis.images import encoded, geometry

SIZE = (6, 8, 10)


def _image(name: str) -> PreparedImage:
    return PreparedImage(name, np.zeros((1, *SIZE), np.float32), geometry(SIZE[::-1]))


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
