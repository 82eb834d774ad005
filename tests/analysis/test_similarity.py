from __future__ import annotations

import numpy as np
import pytest

from nnssl.analysis.similarity import compare, distances_mm, mean_by_distance, rank_correlation
from nnssl.features.match import comparable, read_vectors
from tests.analysis.images import all_voxels, encoded, geometry

SIZE = (6, 8, 10)
VOXELS = all_voxels(SIZE)


def _cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray((a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))


def test_distances_mm__of_an_oblique_image_with_unequal_spacing() -> None:
    found = distances_mm(geometry(SIZE[::-1]), [[1, 2, 3], [3, 2, 3], [1, 4, 6]], [1, 2, 3])
    np.testing.assert_allclose(found, [0, 2 * 1.0, np.hypot(2 * 1.5, 3 * 2.0)])


def test_compare__is_the_mean_cosine_of_the_maps_against_the_distance_in_mm() -> None:
    image, point = encoded(), np.array([2.0, 3.0, 4.0])
    (centred,) = comparable([image], VOXELS, encodes=False)
    found = compare(centred, centred, geometry(SIZE[::-1]), point, VOXELS)
    vectors, reference = read_vectors(centred, VOXELS), read_vectors(centred, point)
    expected = np.mean([_cosine(vectors[name], reference[name]) for name in vectors], axis=0)
    np.testing.assert_allclose(found.similarities, expected, atol=2e-3)
    np.testing.assert_allclose(found.map.ravel(), expected, atol=2e-3)
    assert found.map[2, 3, 4] == pytest.approx(1, abs=1e-3) and found.best is point
    assert found.similarities[found.distances == 0] == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(found.components.mean(0), 0, atol=1e-6)
    at = np.flatnonzero(found.distances == 0)[0]
    np.testing.assert_allclose(found.components[at], found.reference_components, atol=1e-5)


def test_compare__in_another_image_the_distance_is_to_the_best_match() -> None:
    first, second = encoded(), encoded()  # the same content
    found = compare(first, second, geometry(SIZE[::-1]), np.array([2.0, 3.0, 4.0]), VOXELS)
    np.testing.assert_array_equal(found.best, [2, 3, 4])
    np.testing.assert_allclose(found.distances, distances_mm(geometry(SIZE[::-1]), VOXELS, [2, 3, 4]))


def test_mean_by_distance__shells() -> None:
    shells = mean_by_distance(np.array([0.0, 9.9, 10.0, 35.0]), np.array([1.0, 0.5, 0.2, -0.3]))
    assert shells == [(10.0, 0.75, 2), (20.0, 0.2, 1), (40.0, -0.3, 1)]


def test_rank_correlation__monotone_is_one_and_constant_is_unknown() -> None:
    values = np.random.default_rng(0).random(20)
    assert rank_correlation(values, np.exp(5 * values)) == pytest.approx(1)
    assert rank_correlation(values, -(values**3)) == pytest.approx(-1)
    assert np.isnan(rank_correlation(values, np.ones(20)))
