from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from nnssl.analysis.pca import ends_of_colours, project_image, visualize_pca
from nnssl.core.errors import UserError
from nnssl.features.components import balanced_components
from nnssl.features.match import read_vectors
from tests.analysis.images import all_voxels, encoded

SIZE = (6, 8, 10)


@pytest.mark.parametrize("cells", [2**18, 1], ids=["at once", "plane by plane"])
def test_project_image__is_what_the_voxels_vectors_give(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Projecting the maps and then interpolating them is the projection of the interpolated vectors."""
    monkeypatch.setattr("nnssl.analysis.pca._CELLS", cells)
    image, voxels = encoded(), all_voxels(SIZE)
    vectors = read_vectors(image, voxels)
    components = balanced_components(vectors, 3)
    projected = components(vectors)
    ends = ends_of_colours(projected)
    body = np.ones(SIZE, dtype=bool)
    body[0] = False
    colours = project_image(image, components, ends, body)
    expected = 1 + 254 * np.clip((projected - ends[:, 0]) / (ends[:, 1] - ends[:, 0]), 0, 1)
    expected = expected.T.reshape(3, *SIZE)
    assert colours.dtype == np.uint8 and not colours[:, 0].any() and colours[:, 1:].min() == 1
    assert np.abs(colours[:, 1:] - expected[:, 1:]).max() <= 0.51


def test_visualize_pca__refuses_hardly_any_body(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    body = np.zeros((4, 5, 6), dtype=bool)
    body[2, 2, 1:4] = True
    source = SimpleNamespace(images=SimpleNamespace(prepare=lambda images: [SimpleNamespace(body=body)]))
    monkeypatch.setattr("nnssl.analysis.pca.open_features", lambda *_: source)
    with pytest.raises(UserError, match=r"a\.nii\.gz shows a body of only 3 voxels"):
        visualize_pca("run", "a.nii.gz", tmp_path / "a.png")
