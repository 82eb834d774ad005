from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from nnssl.analysis.points import LabelVolume
from nnssl.analysis.tsne import (
    Scatter,
    _draw,
    _save,
    draw_voxels,
    embed_in_plane,
    reduce,
    same_neighbours,
    shares_by_chance,
)
from tests.analysis.images import geometry

SIZE = (8, 6, 5)  # (x, y, z)


def test_draw_voxels__so_many_of_each_label_at_voxels_of_the_grid() -> None:
    values = np.random.default_rng(0).integers(0, 4, SIZE)
    values[0, 0, 0] = 5
    volume = LabelVolume(values, geometry(SIZE))
    points, labels = draw_voxels(volume, [1, 3, 5, 6], 12, np.random.default_rng(1))
    assert [int((labels == v).sum()) for v in (1, 3, 5, 6)] == [12, 12, 1, 0]
    assert len({tuple(p) for p in points.round(6)}) == len(points)
    np.testing.assert_array_equal(volume.at(points), labels)
    again, _ = draw_voxels(volume, [1, 3, 5, 6], 12, np.random.default_rng(1))
    np.testing.assert_array_equal(points, again)


def test_draw_voxels__leaves_out_what_was_cropped_away() -> None:
    values = np.ones(SIZE, dtype=np.int64)
    points, _ = draw_voxels(LabelVolume(values, geometry(SIZE, crop=1)), [1], 10**6, np.random.default_rng(1))
    assert len(points) == 7 * 5 * 4


def test_tsne__labels_and_cases_with_odd_names(tmp_path: Path) -> None:
    names = {1: "=cmd()", 2: "a|b, $x_{$"}
    number = np.array([1, 2, 2])
    scatter = Scatter(
        np.zeros((3, 2)), number, names, np.array([0, 0, 1]), np.ones((3, 3)), {1: 0.5, 2: 0.5}, {1: 0.5, 2: 0.5}
    )
    cases = ["-x_1&2%", "$y_{$"]
    _save(scatter, "vox2vec", cases, tmp_path / "a.png")
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert [(row["image"], row["label"]) for row in rows] == [
        ("'-x_1&2%", "'=cmd()"),
        ("'-x_1&2%", "a|b, $x_{$"),
        ("$y_{$", "a|b, $x_{$"),
    ]
    _draw(scatter, ", ".join(cases), tmp_path / "a.png")  # none of it is a formula for matplotlib
    assert (tmp_path / "a.png").stat().st_size > 5000


def _two_groups(width: int, count: int, apart: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Vectors of two labels in two images; labels and images."""
    labels, images = np.repeat([1, 2], count), np.tile([0, 1], count)
    vectors = np.random.default_rng(0).normal(size=(2 * count, width))
    return vectors + apart * (labels[:, None] == 2), labels, images


def test_same_neighbours__apart_and_mixed() -> None:
    vectors, labels, images = _two_groups(3, 40, 0.0)
    mixed = same_neighbours(vectors, labels, images)
    assert all(0.3 < share < 0.7 for share in mixed.values())
    assert same_neighbours(*_two_groups(3, 40, 50.0)) == {1: 1.0, 2: 1.0}


def test_same_neighbours__are_those_of_other_images() -> None:
    """In both images the labels are apart, but the other way round."""
    labels, images = np.repeat([1, 2, 1, 2], 15), np.repeat([0, 1], 30)
    side = np.where(images == 0, labels, 3 - labels)
    vectors = np.stack([side * 10.0, images * 1.0], axis=1) + np.random.default_rng(0).normal(0, 0.1, (60, 2))
    assert same_neighbours(vectors, labels, images) == {1: 0.0, 2: 0.0}
    assert same_neighbours(vectors, labels, np.zeros(60, dtype=int)) == {}


def test_same_neighbours__of_labels_that_two_images_have() -> None:
    vectors, labels, images = _two_groups(3, 40, 50.0)
    lonely = np.where(np.arange(80) < 5, 3, labels)
    images[:5] = 0
    assert same_neighbours(vectors, lonely, images).keys() == {1, 2} == shares_by_chance(lonely, images).keys()
    scatter = Scatter(vectors[:, :2], labels, {}, labels, vectors, same_neighbours(vectors, labels, labels))
    assert "no label is in two of them" in scatter.score


def test_shares_by_chance__follow_the_other_images() -> None:
    labels, images = np.array([1, 1, 2, 1, 2, 2, 2]), np.array([0, 0, 0, 1, 1, 1, 1])
    assert shares_by_chance(labels, images) == pytest.approx({1: (0.25 + 0.25 + 2 / 3) / 3, 2: (0.75 + 3 * 1 / 3) / 4})
    assert shares_by_chance(labels, np.zeros(7, dtype=int)) == {}


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        (({1: 0.9, 2: 0.7}, {1: 0.5, 2: 0.5}, {1: 0.6, 2: 0.5}), "80% .* random weights 55%; chance 50%"),
        (({1: 0.9}, {1: 0.25}), "90% .*; chance 25%"),
        (({}, {}), "two or more"),
    ],
)
def test_scatter__score_beside_chance_and_random_weights(shares: tuple[dict[int, float], ...], said: str) -> None:
    number = np.array([1, 2, 2])
    scatter = Scatter(np.zeros((3, 2)), number, {1: "a", 2: "b"}, np.array([0, 0, 1]), np.ones((3, 3)), *shares)
    assert re.search(said, scatter.score)


def test_embed_in_plane__is_seeded_and_keeps_groups_together() -> None:
    vectors, labels, images = _two_groups(5, 20, 30.0)
    places = embed_in_plane(vectors, 30.0, 3)
    assert places.shape == (40, 2) and same_neighbours(places, labels, images) == {1: 1.0, 2: 1.0}
    np.testing.assert_array_equal(places, embed_in_plane(vectors, 30.0, 3))


def test_reduce__keeps_all_distances_of_few_channels() -> None:
    rng = np.random.default_rng(0)
    vectors = {"fine": rng.normal(size=(30, 4)).astype(np.float32)}
    reduced = reduce(vectors)
    scale = np.sqrt(((vectors["fine"] - vectors["fine"].mean(0)) ** 2).sum(1).mean())
    assert np.linalg.norm(reduced[3] - reduced[7]) == pytest.approx(
        np.linalg.norm(vectors["fine"][3] - vectors["fine"][7]) / scale, rel=1e-4
    )
