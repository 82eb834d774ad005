from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from nnssl.analysis.planes import Overlay, Plane, Row, Scale, cells_in, page
from nnssl.features.geometry import grid_geometry
from nnssl.features.images import PreparedImage
from tests.analysis.images import geometry

SIZE, TURNED = (6, 8, 10), (12, 16, 14)
AXES = list(permutations(range(3)))


def _turned(order: tuple[int, ...], signs: tuple[float, ...], angle: float = 0.0) -> PreparedImage:
    """Array axis i runs along world axis order[i], in a direction of its own; turned by an angle about z."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (world, sign, spacing) in enumerate(zip(order, signs, (3.0, 1.5, 2.0), strict=True)):
        affine[world, axis] = sign * spacing
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = (10.0, -20.0, 30.0)
    geometry = grid_geometry(affine, affine, (0, 1, 2), [(0, n) for n in TURNED], TURNED)
    return PreparedImage("case", np.random.default_rng(0).random((1, *TURNED), dtype=np.float32), geometry)


@pytest.mark.parametrize("order", AXES, ids=str)
@pytest.mark.parametrize("signs", [(1.0, 1.0, 1.0), (-1.0, 1.0, -1.0)], ids=str)
def test_scale__is_the_world_in_every_orientation(order: tuple[int, ...], signs: tuple[float, ...]) -> None:
    image, point = _turned(order, signs), np.array([4.0, 9.0, 5.0])
    scale = Scale.of(image, point)
    planes = scale.planes(point, TURNED)
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
    image, point = _turned(order, (-1.0, 1.0, 1.0)), np.array([4.4, 8.6, 5.0])
    scale = Scale.of(image, point)
    shape = tuple(-(-n // s) for n, s in zip(TURNED, stride, strict=True))
    numbers = np.arange(np.prod(shape)).reshape(shape)
    for plane in scale.planes(point, TURNED):
        centres = _centres(scale, plane, shape, stride)
        shown = plane.cut(numbers, stride)
        assert shown.shape == centres.shape[:2]
        for row, column in ((0, 0), (1, 2), (shown.shape[0] - 1, shown.shape[1] - 1)):
            cell = np.array(np.unravel_index(int(shown[row, column]), shape))
            assert cell[plane.normal] == np.floor((point[plane.normal] + 0.5) / stride[plane.normal])
            voxel = (cell + 0.5) * stride - 0.5
            np.testing.assert_allclose(centres[row, column], scale.place(plane, voxel))


def test_scale__an_oblique_image_has_the_right_millimetres_and_the_points_own_coordinates() -> None:
    image, point = _turned((2, 1, 0), (1.0, 1.0, 1.0), angle=0.4), np.array([4.0, 9.0, 5.0])
    scale = Scale.of(image, point)
    axial = scale.planes(point, TURNED)[0]
    world = image.geometry.grid_to_world(point)
    np.testing.assert_allclose(scale.place(axial, point), world[:2])
    away = np.subtract(scale.place(axial, point + np.array([0, 2, 3])), scale.place(axial, point))
    np.testing.assert_allclose(away, [3 * 2.0, 2 * 1.5])


@pytest.mark.parametrize("order", AXES, ids=str)
@pytest.mark.parametrize("signs", [(1.0, 1.0, 1.0), (-1.0, 1.0, -1.0)], ids=str)
def test_sides__of_a_turned_array(order: tuple[int, ...], signs: tuple[float, ...]) -> None:
    """Whatever the array's axes are, the world's x comes from the right and goes to the left."""
    scale = Scale.of(_turned(order, signs), np.zeros(3))
    expected = [("R", "L"), ("A", "P"), ("I", "S")]
    assert [scale.sides(axis) for axis in range(3)] == [expected[world] for world in order]


def test_sides__of_an_oblique_image_have_two_letters() -> None:
    scale = Scale.of(_turned((2, 1, 0), (1.0, 1.0, 1.0), angle=0.4), np.zeros(3))
    assert [scale.sides(axis) for axis in range(3)] == [("I", "S"), ("AL", "PR"), ("RA", "LP")]


def test_planes__number_of_the_slice_is_that_of_the_file() -> None:
    """Two voxels are cut off every axis of the file, and the grid has half as many."""
    where = geometry((10, 12, 8), grid=(3, 5, 4), crop=2)
    image = PreparedImage("case", np.zeros((1, 3, 5, 4), np.float32), where)
    point = np.array([1.0, 2, 3])
    planes = Scale.of(image, point).planes(point, (3, 5, 4))
    in_file = np.floor(where.world_to_file(where.grid_to_world(point)) + 0.5)
    assert {plane.title: plane.of_file for plane in planes} == {
        "axial": in_file[2], "coronal": in_file[1], "sagittal": in_file[0],
    }  # fmt: skip
    assert planes[0].of_file == 5 and planes[0].number == 1


def _image() -> PreparedImage:
    where = geometry(SIZE[::-1])
    return PreparedImage("case", np.random.default_rng(0).random((1, *SIZE), dtype=np.float32), where)


def _draw(row: Row) -> list[Axes]:
    """The axes of the three planes."""
    figure, scale = page(4, "title"), Scale.of(row.image, row.at)
    part = figure.add_subfigure(figure.add_gridspec(1, 1)[0])
    row.draw(part, scale, scale.planes(row.at, SIZE))
    return list(part.axes[:3])


def test_row__voxels_are_not_stretched_and_the_overlay_lies_on_the_image() -> None:
    image, at = _image(), np.array([3.0, 2, 4])
    shown = np.ones((6, 4, 5), dtype=bool)
    shown[:, 0] = False
    overlay = Overlay(np.random.default_rng(0).random((6, 4, 5)), (1, 2, 2), shown=shown)
    axes = _draw(Row(image, at, "row", overlay, cell=(2, 2, 2)))
    planes = Scale.of(image, at).planes(at, SIZE)
    for axis, plane in zip(axes, planes, strict=True):
        grey, heat = axis.images
        assert axis.get_aspect() == 1  # a millimetre is as wide as it is high
        assert grey.get_extent() == heat.get_extent()
        said = [text.get_text() for text in axis.texts]
        assert len(said) == 5 and said[-1].endswith(" mm")  # four sides and the scale bar
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
    axes = _draw(Row(image, at, "row", Overlay(cells, (1, 1, 1), opacity=0.5), mark=False))
    drawn = axes[0].images[1].get_array()
    plane = Scale.of(image, at).planes(at, SIZE)[0]
    np.testing.assert_allclose(np.asarray(drawn)[..., 1] * 255, plane.cut(cells[1]))


def test_cells_in__goes_by_the_middle_of_a_cell() -> None:
    body = np.zeros((4, 4, 7), dtype=bool)
    body[:, :, 3:] = True
    inside = cells_in(body, (2, 4, 4), (2, 1, 2))
    assert inside.tolist() == [[[False, True]], [[False, True]]]
