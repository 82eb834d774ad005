from __future__ import annotations

import numpy as np
import pytest

from nnssl.analysis.components import Balance, cells_in, ends_of_colours, principal_components, project_image
from nnssl.analysis.features import read_vectors
from tests.analysis.images import all_voxels, encoded

SIZE = (6, 8, 10)


def test_principal_components__finds_known_axes() -> None:
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    vectors = rng.normal(size=(4000, 5)) * [6, 3, 1, 0.1, 0.1] @ axes.T + 7
    found = principal_components(vectors, 3)
    np.testing.assert_allclose(np.abs(found.axes @ axes)[range(3), range(3)], 1, atol=1e-2)
    np.testing.assert_allclose(found.explained, np.array([36, 9, 1]) / 46.02, atol=2e-2)
    projected = found(vectors)
    np.testing.assert_allclose(projected.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(projected.var(0) / vectors.var(0).sum(), found.explained)
    assert (found.axes[range(3), np.abs(found.axes).argmax(1)] > 0).all()


def test_principal_components__fewer_channels_than_components() -> None:
    found = principal_components(np.array([[0.0], [2.0]]), 3)
    assert found.axes.tolist() == [[1.0], [0.0], [0.0]] and found.explained.tolist() == [1.0, 0.0, 0.0]


def test_balance__every_map_counts_alike() -> None:
    vectors = read_vectors(encoded(), all_voxels(SIZE))
    balanced = Balance.of(vectors)(vectors)
    squares = (balanced**2).mean(0)
    assert squares[:4].sum() == pytest.approx(1) and squares[4:].sum() == pytest.approx(1)


@pytest.mark.parametrize("cells", [2**18, 1], ids=["at once", "plane by plane"])
def test_project_image__is_what_the_voxels_vectors_give(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Projecting the maps and then interpolating them is the projection of the interpolated vectors."""
    monkeypatch.setattr("nnssl.analysis.components._CELLS", cells)
    image, voxels = encoded(), all_voxels(SIZE)
    vectors = read_vectors(image, voxels)
    balance = Balance.of(vectors)
    components = principal_components(balance(vectors), 3)
    projected = components(balance(vectors))
    ends = ends_of_colours(projected)
    body = np.ones(SIZE, dtype=bool)
    body[0] = False
    colours = project_image(image, balance, components, ends, body)
    expected = 1 + 254 * np.clip((projected - ends[:, 0]) / (ends[:, 1] - ends[:, 0]), 0, 1)
    expected = expected.T.reshape(3, *SIZE)
    assert colours.dtype == np.uint8 and not colours[:, 0].any() and colours[:, 1:].min() == 1
    assert np.abs(colours[:, 1:] - expected[:, 1:]).max() <= 0.51


def test_cells_in__goes_by_the_middle_of_a_cell() -> None:
    body = np.zeros((4, 4, 7), dtype=bool)
    body[:, :, 3:] = True
    inside = cells_in(body, (2, 4, 4), (2, 1, 2))
    assert inside.tolist() == [[[False, True]], [[False, True]]]
