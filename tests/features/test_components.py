from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nnssl.core.errors import BadCase, UserError
from nnssl.features.body import sample_features
from nnssl.features.components import Moments, Projection, balanced_components, load_projection
from nnssl.features.match import read_vectors
from tests.analysis.images import all_voxels, encoded
from tests.features.models import averaging_model


def _rows(n: int = 400) -> np.ndarray:
    rng = np.random.default_rng(0)
    return 1000 + rng.normal(size=(n, 3)) * [3.0, 1.0, 0.3] @ np.linalg.qr(rng.normal(size=(5, 3)))[0].T


def test_moments__give_the_components_of_all_rows() -> None:
    rows, moments = _rows(), Moments()
    for part in np.split(rows, [7, 100]):
        moments.add(part)
    found = moments.project(3, None, "weights")
    centred = rows - rows.mean(0)
    _, singular, expected = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs((found.components * expected[:3]).sum(1)), 1, atol=1e-9)
    np.testing.assert_allclose(found.explained, (singular**2 / (singular**2).sum())[:3], atol=1e-9)
    np.testing.assert_allclose(found.mean, rows.mean(0))
    largest = found.components[range(3), np.abs(found.components).argmax(1)]
    assert (largest > 0).all()
    projected = rows @ found.components.T + found.offset.numpy()
    np.testing.assert_allclose(projected.mean(0), 0, atol=1e-3)
    np.testing.assert_allclose(projected.std(0), singular[:3] / 20, rtol=1e-3)


def test_moments__more_components_than_voxels_are_refused() -> None:
    moments = Moments()
    moments.add(_rows(3))
    with pytest.raises(UserError, match="smaller -components"):
        moments.project(3, None, "")
    with pytest.raises(UserError, match="smaller -components"):
        Moments().project(1, None, "")


def test_apart__is_the_part_of_every_level() -> None:
    components = np.arange(12.0).reshape(2, 6)
    parts = Projection(np.zeros(6), components, np.ones(2), None, "").apart([1, 2, 3], torch.device("cpu"))
    assert [list(part.shape) for part in parts] == [[2, 1], [2, 2], [2, 3]]
    np.testing.assert_array_equal(torch.cat(parts, 1).numpy(), components)


def test_load_projection__only_that_of_the_same_features(tmp_path: Path) -> None:
    model, file = averaging_model(), tmp_path / "pca.npz"
    saved = Projection(np.arange(9.0), np.ones((2, 9)), np.array([0.7, 0.1]), None, model.fingerprint)
    saved.save(file)
    found = load_projection(file, model, None)
    for name in ("mean", "components", "explained"):
        np.testing.assert_array_equal(getattr(found, name), getattr(saved, name))
    assert found.level is None and found.weights == model.fingerprint
    with pytest.raises(UserError, match="fitted on all levels; leave out -level"):
        load_projection(file, model, 1)
    replace(saved, level=1).save(file)
    assert load_projection(file, model, 1).level == 1
    with pytest.raises(UserError, match="fitted on level 1; add -level 1"):
        load_projection(file, model, None)
    replace(saved, weights="others").save(file)
    with pytest.raises(UserError, match="another network"):
        load_projection(file, model, None)
    file.write_text("text")
    with pytest.raises(UserError, match=r"is not a pca\.npz"):
        load_projection(file, model, None)
    np.save(tmp_path / "array.npy", np.zeros(3))
    for content in (b"PK\x03\x04 cut off", (tmp_path / "array.npy").read_bytes()):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"is not a pca\.npz"):
            load_projection(file, model, None)
    with pytest.raises(UserError, match="there is no file"):
        load_projection(tmp_path / "none.npz", model, None)


@pytest.mark.parametrize("level", [None, 1])
def test_sample_features__are_those_of_body_voxels(level: int | None) -> None:
    model, rng = averaging_model(), np.random.default_rng(0)
    values = rng.random((1, 40, 70, 53), dtype=np.float32)
    body = np.zeros(values.shape[1:], dtype=bool)
    body[3:7, 30:60, 10:50] = True
    rows = sample_features(model, values, body, level, 300, 100, np.random.default_rng(5))
    again = sample_features(model, values, body, level, 300, 100, np.random.default_rng(5))
    np.testing.assert_array_equal(rows, again)
    x = torch.from_numpy(values)[None]
    if level is None:
        dense = model.dense(x)[0]
    else:
        dense = model(x)[level][0]
        for axis, stride in enumerate(model.strides[level], start=1):
            dense = dense.repeat_interleave(stride, dim=axis)
        dense = dense[:, :40, :70, :53]
    of_body = dense.numpy()[:, body].T
    assert rows.shape == (300, of_body.shape[1])
    distance = np.abs(rows[:, None] - of_body[None]).max(-1).min(1)
    assert distance.max() < 1e-5
    np.testing.assert_allclose(rows.mean(0), of_body.mean(0), atol=0.1)


def test_sample_features__few_tiles_and_few_voxels() -> None:
    model = averaging_model()
    values = np.random.default_rng(0).random((1, 20, 70, 53), dtype=np.float32)
    body = np.zeros(values.shape[1:], dtype=bool)
    body[:, 0, 0] = True
    rng = np.random.default_rng(0)
    assert sample_features(model, values, body, None, 300, 100, rng).shape == (20, 9)
    assert 0 < len(sample_features(model, values, body, None, 300, 1, rng)) < 20
    assert len(model.backbone.seen) < 8  # type: ignore[arg-type]
    with pytest.raises(BadCase, match="all air"):
        sample_features(model, values, np.zeros_like(body), None, 300, 1, rng)


def test_balanced_components__finds_known_axes() -> None:
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    vectors = rng.normal(size=(4000, 5)) * [6, 3, 1, 0.1, 0.1] @ axes.T + 7
    named = {"fine": vectors.astype(np.float32)}
    found = balanced_components(named, 3)
    unit = found.components / np.linalg.norm(found.components, axis=1, keepdims=True)
    np.testing.assert_allclose(np.abs(unit @ axes)[range(3), range(3)], 1, atol=1e-2)
    np.testing.assert_allclose(found.explained, np.array([36, 9, 1]) / 46.02, atol=2e-2)
    projected = found(named)
    np.testing.assert_allclose(projected.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(projected.var(0), found.explained, rtol=1e-4)
    assert (found.components[range(3), np.abs(found.components).argmax(1)] > 0).all()


def test_balanced_components__fewer_channels_than_components() -> None:
    found = balanced_components({"fine": np.array([[0.0], [2.0]], dtype=np.float32)}, 3)
    assert found.components.tolist() == [[1.0], [0.0], [0.0]] and found.explained.tolist() == [1.0, 0.0, 0.0]


def test_balanced_components__every_map_counts_alike() -> None:
    vectors = read_vectors(encoded(), all_voxels((6, 8, 10)))
    found = balanced_components(vectors, 9)
    for name, part in zip(vectors, np.split(found.components, [4], axis=1), strict=True):
        centred = vectors[name] - vectors[name].mean(0)
        assert ((centred @ part.T) ** 2).sum(1).mean() == pytest.approx(1, rel=1e-4)
