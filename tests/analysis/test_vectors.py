from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from nnssl.analysis.embedding_files import body_vector, read_vectors, write_vectors
from nnssl.core.errors import BadCase
from tests.features.models import averaging_model


@pytest.mark.parametrize("size", [(40, 70, 53), (16, 32, 32), (5, 9, 40)])
def test_body_vector__is_the_mean_over_the_body_of_the_whole_image(size: tuple[int, int, int]) -> None:
    model, rng = averaging_model(), np.random.default_rng(0)
    values = rng.random((1, *size), dtype=np.float32)
    body = rng.random(size) < 0.3
    body[: size[0] // 2] = False
    expected = model.dense(torch.from_numpy(values)[None])[0].numpy()[:, body].mean(1, dtype=np.float64)
    found = body_vector(model, values, body)
    assert found.dtype == np.float32 and found.shape == (9,)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(body_vector(model, values, body, level=1), expected[3:6], atol=1e-5)


def test_body_vector__computes_no_tile_without_body() -> None:
    model, values = averaging_model(), np.zeros((1, 40, 128, 128), dtype=np.float32)
    body = np.zeros(values.shape[1:], dtype=bool)
    with pytest.raises(BadCase, match="all air"):
        body_vector(model, values, body)
    body[0, 0, 0] = True
    body_vector(model, values, body)
    assert len(model.backbone.seen) == 1  # type: ignore[arg-type]


def test_write_vectors__come_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = {name: rng.normal(size=5).astype(np.float32) for name in ("b", "a", "ä 3")}
    assert read_vectors(tmp_path / "vectors.npz") == {}
    write_vectors(tmp_path, vectors, [0, 2, 5], as_csv=True, finest=1)
    found = read_vectors(tmp_path / "vectors.npz")
    assert list(found) == sorted(vectors) and all(np.array_equal(found[name], vectors[name]) for name in vectors)
    with np.load(tmp_path / "vectors.npz") as content:
        assert content["vectors"].dtype == np.float32 and content["levels"].tolist() == [0, 2, 5]
    header, *rows = csv.reader((tmp_path / "vectors.csv").read_text(encoding="utf-8").splitlines())
    assert header == ["case", "level1_0", "level1_1", "level2_0", "level2_1", "level2_2"]
    assert {name: [np.float32(v) for v in row] for name, *row in rows} == {n: list(v) for n, v in vectors.items()}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["vectors.csv", "vectors.npz"]


def test_write_vectors__of_cases_with_odd_names(tmp_path: Path) -> None:
    names = ["=cmd()", "a|b", 'x_1&2%, "y"']
    write_vectors(tmp_path, dict.fromkeys(names, -np.ones(1, np.float32)), [0, 1], as_csv=True)
    _, *rows = csv.reader((tmp_path / "vectors.csv").read_text(encoding="utf-8").splitlines())
    assert rows == [["'=cmd()", "-1"], ["a|b", "-1"], ['x_1&2%, "y"', "-1"]]
    assert list(read_vectors(tmp_path / "vectors.npz")) == names
