from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nnssl.analysis.features import body_of, body_voxels, comparable, open_features, read_vectors, subtract
from nnssl.core.errors import UserError
from nnssl.features.images import PreparedImage
from tests.analysis.images import all_voxels, encoded, geometry
from tests.phantoms import write_volume
from tests.pretrainings import tiny_plans, write_pretraining


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
    monkeypatch.setattr("nnssl.analysis.features._POINTS", 7)
    for name, vectors in read_vectors(image, points).items():
        np.testing.assert_array_equal(vectors, whole[name])


def test_comparable__takes_the_mean_of_the_first_image_from_all_but_leaves_encodings(tmp_path: Path) -> None:
    source = open_features(write_pretraining(tmp_path / "a", tiny_plans(), method="vox2vec"))
    first, second, voxels = encoded(), encoded(seed=1), all_voxels((6, 8, 10))
    one, two = comparable(source, voxels, first, second)
    for vectors in read_vectors(one, voxels).values():
        np.testing.assert_allclose(vectors.mean(0), 0, atol=2e-2)
    means = {name: vectors.mean(0) for name, vectors in read_vectors(first, voxels).items()}
    torch.testing.assert_close(two.maps["fine"], subtract(second, means).maps["fine"])
    pixel = open_features(write_pretraining(tmp_path / "b", tiny_plans(), method="sam"))
    assert pixel.encodes and comparable(pixel, voxels, first)[0] is first


def test_open_features__levels_of_the_pyramid(tmp_path: Path) -> None:
    run = write_pretraining(tmp_path, tiny_plans(), method="pimpic")
    image = PreparedImage("case", np.random.default_rng(0).random((1, 20, 18, 22), dtype=np.float32),
                          geometry((22, 18, 20)))  # fmt: skip
    source = open_features(run)
    every = source.encode(image)
    assert list(every.maps) == ["fine", "level 1", "level 2", "level 3"]
    assert [tuple(m.shape) for m in every.maps.values()] == [(8, 20, 18, 22), (16, 10, 9, 11), (32, 5, 5, 6),
                                                             (64, 3, 3, 3)]  # fmt: skip
    one = open_features(run, level=2).encode(image)
    assert list(one.maps) == ["fine"] and one.strides == {"fine": (4, 4, 4)}
    # tiles are laid by the strides of all levels that are asked for
    assert one.maps["fine"].shape == every.maps["level 2"].shape
    with pytest.raises(UserError, match=r"-level 4 does not exist; pimpic has the levels 0 \(finest\) to 3"):
        open_features(run, level=4)


@pytest.mark.parametrize("scheme", ["CTNormalization", "ZScoreNormalization"])
def test_prepare__the_body_is_what_air_from_outside_does_not_reach(tmp_path: Path, scheme: str) -> None:
    values = np.full((10, 20, 20), -1000, dtype=np.int16)
    values[:, 5:15, 5:15] = 40
    values[:, 8:12, 8:12] = -1000  # air inside
    expected = values.copy() > -1000
    expected[:, 8:12, 8:12] = True
    write_volume(tmp_path / "case_0000.nii.gz", values, (3.0, 1.5, 1.5))
    write_volume(tmp_path / "air_0000.nii.gz", np.full_like(values, -1000), (3.0, 1.5, 1.5))
    source = open_features(write_pretraining(tmp_path, tiny_plans(normalization_schemes=[scheme])))
    np.testing.assert_array_equal(body_of(source.prepare(tmp_path / "case")), expected)
    with pytest.raises(UserError, match="air"):
        source.prepare(tmp_path / "air")


def test_body_voxels__are_different_ones_of_the_mask() -> None:
    mask = np.random.default_rng(0).random((5, 6, 7)) > 0.5
    drawn = body_voxels(mask, 30, np.random.default_rng(1))
    assert drawn.shape == (30, 3) and len({tuple(v) for v in drawn}) == 30
    assert mask[tuple(drawn.astype(int).T)].all()
    assert len(body_voxels(mask, 10**6, np.random.default_rng(1))) == mask.sum()
