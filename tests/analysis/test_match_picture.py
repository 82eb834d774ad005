from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from nnssl.analysis.match_picture import Plane, Scale, draw_match
from nnssl.features.images import ImageGeometry, PreparedImage

SIZE = (12, 16, 14)
AXES = list(permutations(range(3)))


def _image(order: tuple[int, ...], signs: tuple[float, ...], angle: float = 0.0) -> PreparedImage:
    """Array axis i runs along world axis order[i], in a direction of its own; turned by an angle about z."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign, spacing) in enumerate(zip(order, signs, (3.0, 1.5, 2.0), strict=True)):
        affine[world, axis] = sign * spacing
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = (10.0, -20.0, 30.0)
    size = np.array(SIZE, dtype=float)
    geometry = ImageGeometry(affine, affine, (0, 1, 2), np.zeros(3), size, size)
    return PreparedImage("case", np.random.default_rng(0).random((1, *SIZE), dtype=np.float32), geometry)


@pytest.mark.parametrize("order", AXES, ids=str)
@pytest.mark.parametrize("signs", [(1.0, 1.0, 1.0), (-1.0, 1.0, -1.0)], ids=str)
def test_scale__is_the_world_in_every_orientation(order: tuple[int, ...], signs: tuple[float, ...]) -> None:
    image, point = _image(order, signs), np.array([4.0, 9.0, 5.0])
    scale = Scale.of(image, point)
    planes = scale.planes(point, SIZE)
    assert [plane.title for plane in planes] == ["axial", "coronal", "sagittal"]
    for plane, (normal, columns, rows) in zip(planes, [(2, 0, 1), (1, 0, 2), (0, 1, 2)], strict=True):
        assert [order[a] for a in (plane.normal, plane.columns, plane.rows)] == [normal, columns, rows]
        other = np.array([2.0, 7.0, 11.0])
        world = image.geometry.grid_to_world(other)
        np.testing.assert_allclose(scale.place(plane, other), [world[columns], world[rows]])


def _centres(scale: Scale, plane: Plane, shape: tuple[int, ...], stride: tuple[int, ...]) -> np.ndarray:
    """(columns, rows) mm of the pixels of a slice, as `imshow` puts them: the first row at the top."""
    left, right, bottom, top = scale.extent(plane, shape, stride)
    columns, rows = shape[plane.columns], shape[plane.rows]
    x = left + (np.arange(columns) + 0.5) * (right - left) / columns
    y = top + (np.arange(rows) + 0.5) * (bottom - top) / rows
    return np.stack(np.meshgrid(x, y), -1)


@pytest.mark.parametrize("stride", [(1, 1, 1), (2, 4, 1)], ids=str)
@pytest.mark.parametrize("order", AXES, ids=str)
def test_extent__pixels_lie_where_their_cells_do(order: tuple[int, ...], stride: tuple[int, ...]) -> None:
    image, point = _image(order, (-1.0, 1.0, 1.0)), np.array([4.4, 8.6, 5.0])
    scale = Scale.of(image, point)
    shape = tuple(-(-n // s) for n, s in zip(SIZE, stride, strict=True))
    numbers = np.arange(np.prod(shape)).reshape(shape)
    for plane in scale.planes(point, SIZE):
        centres = _centres(scale, plane, shape, stride)
        shown = plane.cut(numbers, stride)
        assert shown.shape == centres.shape[:2]
        for row, column in ((0, 0), (1, 2), (shown.shape[0] - 1, shown.shape[1] - 1)):
            cell = np.array(np.unravel_index(int(shown[row, column]), shape))
            assert cell[plane.normal] == np.floor((point[plane.normal] + 0.5) / stride[plane.normal])
            voxel = (cell + 0.5) * stride - 0.5
            np.testing.assert_allclose(centres[row, column], scale.place(plane, voxel))


def test_scale__an_oblique_image_has_the_right_millimetres_and_the_points_own_coordinates() -> None:
    image, point = _image((2, 1, 0), (1.0, 1.0, 1.0), angle=0.4), np.array([4.0, 9.0, 5.0])
    scale = Scale.of(image, point)
    axial = scale.planes(point, SIZE)[0]
    world = image.geometry.grid_to_world(point)
    np.testing.assert_allclose(scale.place(axial, point), world[:2])
    away = np.subtract(scale.place(axial, point + np.array([0, 2, 3])), scale.place(axial, point))
    np.testing.assert_allclose(away, [3 * 2.0, 2 * 1.5])


def test_draw_match__writes_a_picture_in_one_piece(tmp_path: Path) -> None:
    image = _image((2, 1, 0), (1.0, 1.0, 1.0))
    similarity = np.random.default_rng(0).random((6, 8, 7), dtype=np.float32)
    draw_match(image, image, [3, 4, 5], [6, 2, 1.5], similarity, (2, 2, 2), tmp_path / "match.png")
    assert [file.name for file in tmp_path.iterdir()] == ["match.png"]
    assert (tmp_path / "match.png").stat().st_size > 10_000
