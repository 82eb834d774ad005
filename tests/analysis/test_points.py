from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnssl.analysis.points import (
    LEFT,
    RIGHT,
    WHOLE,
    LabelVolume,
    body_voxels,
    centres_of_labels,
    label_file,
    label_names,
    names_of,
    places_of,
    read_labels,
)
from nnssl.core.errors import UserError
from nnssl.features.geometry import ImageGeometry
from tests.analysis.images import geometry, write_file

SIZE, LARGER = (8, 6, 5), (10, 8, 6)  # (x, y, z)


def _dataset(folder: Path) -> Path:
    """A raw dataset with the labels of one case; returns its label file."""
    (folder / "labelsTr").mkdir()
    values = np.random.default_rng(0).integers(0, 3, SIZE[::-1]).astype(np.uint8)
    write_file(folder / "labelsTr" / "case_1.nii.gz", values)
    content = {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz",
               "labels": {"background": 0, "liver": 1, "spine": 2, "both": [1, 2], "ignore": 3},
               "regions_class_order": [1, 2, 1]}  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder / "labelsTr" / "case_1.nii.gz"


def test_label_file__beside_the_images_in_a_folder_or_itself(tmp_path: Path) -> None:
    expected = _dataset(tmp_path)
    for image in ("imagesTr/case_1_0000.nii.gz", "imagesTr/case_1"):
        assert label_file(tmp_path / image, None, ".nii.gz") == expected
    assert label_file("case_1_0000.nii.gz", tmp_path / "labelsTr", ".nii.gz") == expected
    assert label_file("another", expected, ".nii.gz") == expected
    with pytest.raises(UserError, match=r"no label file .*labelsTr/case_2\.nii\.gz .*-l"):
        label_file(tmp_path / "imagesTr" / "case_2_0000.nii.gz", None, ".nii.gz")


def test_read_labels__values_at_voxels_of_a_cropped_and_resampled_grid(tmp_path: Path) -> None:
    file = _dataset(tmp_path)
    volume = read_labels(file, geometry(SIZE, (8, 10, 14), crop=1))
    # grid voxels 2c and 2c + 1 are in the file's voxel c + 1
    expected = [volume.values[1, 1, 1], volume.values[7, 4, 2], volume.values[1, 2, 4]]
    assert volume.at(np.array([[0.0, 1, 0], [3, 7, 13], [6, 2, 1]])).tolist() == expected
    assert volume.at(np.array([[0.0, 0, 40]])).tolist() == [0]


def test_read_labels__of_another_image(tmp_path: Path) -> None:
    file = _dataset(tmp_path)
    moved = geometry(SIZE)
    moved.file_affine[0, 3] += 5
    with pytest.raises(UserError, match="another place than its image"):
        read_labels(file, moved)
    sitk.WriteImage(sitk.Image(8, 6, sitk.sitkUInt8), str(file.with_name("flat.nii.gz")))
    with pytest.raises(UserError, match="has 2 axes; give one with three"):
        read_labels(file.with_name("flat.nii.gz"), moved)
    file.write_bytes(b"no image")
    with pytest.raises(UserError, match="cannot be used"):
        read_labels(file, moved)


def test_centres__is_the_centre_of_mass_in_the_world() -> None:
    where = geometry(SIZE)
    values = np.zeros(SIZE, dtype=np.int64)
    values[2:4, 1, 3] = 7
    volume = LabelVolume(values, where)
    assert list(volume.centres(7)) == [WHOLE]
    np.testing.assert_allclose(volume.centres(7)[WHOLE], where.file_to_world([2.5, 1, 3]))
    assert volume.centres(1) == {} and volume.count(7) == 2


@pytest.mark.parametrize("flip", [False, True])
def test_centres__left_is_where_the_worlds_x_is_larger(flip: bool) -> None:
    where = geometry(SIZE)
    if flip:  # the file's x runs to the right
        where.file_affine[:, 0] *= -1
    values = np.zeros(SIZE, dtype=np.uint8)
    values[0:2, 2, 2], values[6:8, 2, 3], values[4, 5, 0] = 7, 7, 7  # the last one is a speck
    found = LabelVolume(values, where).centres(7)
    ends = where.file_to_world([[0.5, 2, 2], [6.5, 2, 3]])
    left, right = ends[::-1] if not flip else ends
    assert left[0] > right[0]
    np.testing.assert_allclose(found[LEFT], left)
    np.testing.assert_allclose(found[RIGHT], right)
    np.testing.assert_allclose(found[WHOLE], where.file_to_world(np.argwhere(values).mean(0)))


@pytest.mark.parametrize("places", [[(3, 0, 0), (3, 5, 1)], [(3, 2, 0), (3, 2, 4)], [(0, 2, 2), (3, 2, 2), (7, 2, 2)]])
def test_centres__no_halves_of_what_lies_behind_above_or_is_three(places: list[tuple[int, int, int]]) -> None:
    values = np.zeros(SIZE, dtype=np.uint8)
    for place in places:
        values[place] = 1
    assert list(LabelVolume(values, geometry(SIZE)).centres(1)) == [WHOLE]


def test_label_names__of_dataset_json(tmp_path: Path) -> None:
    file = _dataset(tmp_path)
    assert label_names(file) == {1: "liver", 2: "spine"}
    assert label_names(file, ["spine", "9"]) == {2: "spine", 9: "label 9"}
    with pytest.raises(UserError, match="no label 'lung'; the labels are liver, spine"):
        label_names(file, ["lung"])


def test_names_of__values_where_nothing_is_named() -> None:
    volume = LabelVolume(np.array([[[0, 4, 2, 4]]]), geometry((1, 1, 4)))
    assert names_of([volume], {}) == {2: "label 2", 4: "label 4"}
    assert names_of([volume], {1: "liver"}) == {1: "liver"}


def test_centres_of_labels__of_those_that_occur() -> None:
    values = np.zeros(LARGER, dtype=np.int64)
    values[2:4, 1, 3] = 1
    values[0, 0, 0] = 3
    volume = LabelVolume(values, geometry(LARGER))
    found = centres_of_labels(volume, {1: "liver", 2: "spine", 3: "corner"})
    assert found.names == ("liver", "corner") and found.sources == ((1, ""), (3, ""))
    np.testing.assert_allclose(found.points, np.array([[3, 1, 2.5], [0, 0, 0]]), atol=1e-9)
    cropped = centres_of_labels(LabelVolume(values, geometry(LARGER, crop=1)), {3: "corner"})
    assert cropped.names == () and cropped.points.shape == (0, 3)


def _pair(where: ImageGeometry) -> LabelVolume:
    values = np.zeros(LARGER, dtype=np.uint8)
    values[1:3, 4, 2] = values[8:10, 4, 2] = 7
    return LabelVolume(values, where)


def test_centres_of_labels__both_halves_of_a_pair() -> None:
    found = centres_of_labels(_pair(geometry(LARGER)), {7: "hippocampus"})
    assert found.names == ("hippocampus (left)", "hippocampus (right)")
    np.testing.assert_allclose(found.points, [[2, 4, 8.5], [2, 4, 1.5]], atol=1e-9)


def test_places_of__the_same_half_or_nowhere() -> None:
    one, pair = LabelVolume(np.zeros(LARGER, dtype=np.uint8), geometry(LARGER)), _pair(geometry(LARGER))
    one.values[4:6, 4, 2] = 7
    np.testing.assert_allclose(places_of(pair, [(7, "right"), (7, "left"), (7, "")])[:, 2], [1.5, 8.5, 5], atol=1e-9)
    found = places_of(one, [(7, "right"), (7, ""), (1, "")])
    assert np.isnan(found[[0, 2]]).all()
    np.testing.assert_allclose(found[1], [2, 4, 4.5], atol=1e-9)
    assert places_of(one, []).shape == (0, 3)


def test_body_voxels__are_different_ones_of_the_mask() -> None:
    mask = np.random.default_rng(0).random((5, 6, 7)) > 0.5
    drawn, others = body_voxels(1, (mask, 30), (mask, 30))
    assert drawn.shape == (30, 3) and len({tuple(v) for v in drawn}) == 30
    assert mask[tuple(drawn.astype(int).T)].all()
    assert not np.array_equal(drawn, others) and np.array_equal(drawn, body_voxels(1, (mask, 30))[0])
    assert len(body_voxels(1, (mask, 10**6))[0]) == mask.sum()
