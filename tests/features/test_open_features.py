from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import nnssl
from nnssl.core.errors import UserError
from nnssl.features.images import PreparedImage
from nnssl.features.match import comparable, read_vectors
from nnssl.features.model import open_features
from tests.analysis.images import all_voxels, encoded, geometry
from tests.phantoms import write_volume
from tests.pretrainings import tiny_plans, write_pretraining


def test_comparable__takes_the_mean_of_the_first_image_from_all_but_leaves_encodings(tmp_path: Path) -> None:
    source = open_features(write_pretraining(tmp_path / "a", tiny_plans(), method="vox2vec"))
    first, second, voxels = encoded(), encoded(seed=1), all_voxels((6, 8, 10))
    one, two = comparable([first, second], voxels, source.encodes)
    for vectors in read_vectors(one, voxels).values():
        np.testing.assert_allclose(vectors.mean(0), 0, atol=2e-2)
    fine = torch.from_numpy(read_vectors(first, voxels)["fine"].mean(0))[:, None, None, None]
    torch.testing.assert_close(two.maps["fine"], (second.maps["fine"].float() - fine).half())
    pixel = open_features(write_pretraining(tmp_path / "b", tiny_plans(), method="sam"))
    assert pixel.encodes and comparable([first], voxels, pixel.encodes)[0] is first


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
    np.testing.assert_array_equal(next(source.images.prepare([tmp_path / "case"])).body, expected)
    with pytest.raises(UserError, match="air"):
        next(source.images.prepare([tmp_path / "air"]))


@pytest.mark.parametrize("method", ["vox2vec", "sam"])
def test_open_features__a_random_network_takes_the_same_images(tmp_path: Path, method: str) -> None:
    run = write_pretraining(tmp_path, tiny_plans(), method=method).parent
    trained, random = open_features(run), open_features(f"random:{run}")
    assert random.title == trained.title.replace(method, f"{method} with random weights")
    assert random.origin.plans == trained.origin.plans and random.encodes == trained.encodes
    image = PreparedImage("case", np.random.default_rng(0).random((1, 20, 18, 22), dtype=np.float32),
                          geometry((22, 18, 20)))  # fmt: skip
    maps, others = (source.encode(image).maps for source in (trained, random))
    assert maps.keys() == others.keys()
    assert not any(torch.equal(maps[name], others[name]) for name in maps)
    backbone = nnssl.load_pretrained(f"random:{run}")
    assert backbone.is_random and backbone.fingerprint == nnssl.load_pretrained(f"random:{run}").fingerprint
    assert backbone.fingerprint != nnssl.load_pretrained(run).fingerprint
