from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from nnssl.analysis.canvas import (
    Overlay,
    check_output,
    draw_planes,
    outline_cell,
    page,
    parts_of,
    row_of_planes,
    save_numbers,
)
from nnssl.analysis.match_picture import Scale
from nnssl.core.errors import UserError
from nnssl.features.images import PreparedImage
from tests.analysis.images import geometry

SIZE = (6, 8, 10)


def _image() -> PreparedImage:
    where = geometry(SIZE[::-1])
    return PreparedImage("case", np.random.default_rng(0).random((1, *SIZE), dtype=np.float32), where)


def test_draw_planes__voxels_are_not_stretched_and_the_overlay_lies_on_the_image() -> None:
    image, at = _image(), np.array([3.0, 2, 4])
    shown = np.ones((6, 4, 5), dtype=bool)
    shown[:, 0] = False
    overlay = Overlay(np.random.default_rng(0).random((6, 4, 5)), shown, (1, 2, 2))
    axes, _ = row_of_planes(parts_of(page(4, "title"), [1, 1])[0], image, at, "row")
    draw_planes(axes, image, at, overlay)
    outline_cell(axes, image, at, (2, 2, 2))
    planes = Scale.of(image, at).planes(at, SIZE)
    for axis, plane in zip(axes, planes, strict=True):
        grey, heat = axis.images
        assert axis.get_aspect() == 1  # a millimetre is as wide as it is high
        assert grey.get_extent() == heat.get_extent()
        np.testing.assert_array_equal(np.asarray(heat.get_alpha()) > 0, plane.cut(shown, (1, 2, 2)))
        (box,) = axis.patches
        assert isinstance(box, Rectangle)
        x, y = Scale.of(image, at).place(plane, at)
        assert sorted((box.get_x(), box.get_x() + box.get_width()))[0] < x
        assert abs(box.get_width()) == pytest.approx(2 * image.geometry.spacing[plane.columns])
        assert min(box.get_y(), box.get_y() + box.get_height()) < y


def test_overlay__colours_are_those_of_the_cells() -> None:
    image, at = _image(), np.array([3.0, 2, 4])
    cells = np.random.default_rng(0).integers(0, 256, (3, *SIZE)).astype(np.uint8)
    axes, _ = row_of_planes(parts_of(page(4, "title"), [1, 1])[0], image, at, "row")
    draw_planes(axes, image, at, Overlay(cells, np.ones(SIZE, bool), (1, 1, 1), opacity=0.5), mark=False)
    drawn = axes[0].images[1].get_array()
    plane = Scale.of(image, at).planes(at, SIZE)[0]
    np.testing.assert_allclose(np.asarray(drawn)[..., 1] * 255, plane.cut(cells[1]))


def test_check_output__a_png_in_a_folder_that_exists(tmp_path: Path) -> None:
    assert check_output(tmp_path / "a.png") == tmp_path / "a.png"
    with pytest.raises(UserError, match=r"has to end in \.png"):
        check_output(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="of -o does not exist"):
        check_output(tmp_path / "b" / "a.png")
    (tmp_path / "c.png").mkdir()
    with pytest.raises(UserError, match=r"c\.png is a folder"):
        check_output(tmp_path / "c.png")


def test_check_output__keeps_what_is_not_of_an_earlier_picture(tmp_path: Path) -> None:
    """`-o case.png` beside case.nii.gz, the image itself."""
    (tmp_path / "case.nii.gz").touch()
    assert check_output(tmp_path / "case.png") == tmp_path / "case.png"
    with pytest.raises(UserError, match=r"case\.nii\.gz exists and would be overwritten"):
        check_output(tmp_path / "case.png", ".nii.gz")
    (tmp_path / "case.png").touch()
    assert check_output(tmp_path / "case.png", ".nii.gz") == tmp_path / "case.png"
    (tmp_path / "dataset.json").touch()
    with pytest.raises(UserError, match=r"dataset\.json exists"):
        check_output(tmp_path / "dataset.png")


def test_check_output__a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda folder, mode: False)
    with pytest.raises(UserError, match="cannot be written to"):
        check_output(tmp_path / "a.png")


def test_save_numbers__is_json_and_what_is_unknown_is_null(tmp_path: Path) -> None:
    save_numbers({"a": np.float32(0.5), "b": np.array([1.0, np.nan]), "c": [(np.int64(2), "x")]}, tmp_path / "f.png")
    assert json.loads((tmp_path / "f.json").read_text()) == {"a": 0.5, "b": [1.0, None], "c": [[2, "x"]]}
