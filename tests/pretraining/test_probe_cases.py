from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nnssl.core.errors import UserError
from nnssl.pretraining.probe_data import HeldOutWindows, LabelledCases
from tests.pretraining.labelled import SIZE, add_labels, make_probe

PATCH = (8, 16, 16)


def test_labelled_cases__a_crop_is_a_function_of_its_number_and_half_show_a_label(tmp_path: Path) -> None:
    cases = LabelledCases(make_probe(tmp_path), PATCH)
    crops = [cases.crop(0, number) for number in range(40)]
    again = LabelledCases(cases.data, PATCH).crop(0, 7)
    assert np.array_equal(crops[7].image, again.image) and np.array_equal(crops[7].classes, again.classes)
    assert not np.array_equal(cases.crop(1, 7).image, again.image)
    assert {c.image.shape for c in crops} == {(1, *PATCH)} and crops[0].image.dtype == np.float32
    assert sum(bool((c.classes == 1).any()) for c in crops) > 10
    # the image is where the label is
    boxes = np.concatenate([c.image[0][c.classes == 1] for c in crops])
    assert abs(boxes.mean() - 0.9) < 0.02


def test_labelled_cases__the_patch_may_be_larger_than_the_volume(tmp_path: Path) -> None:
    cases = LabelledCases(make_probe(tmp_path), (32, 24, 32))
    crop = cases.crop(0, 0)
    assert crop.image.shape == (1, 32, 24, 32)
    assert (
        (crop.image[0, :8] == 0).all() and (crop.image[0, 24:] == 0).all() and (crop.image[0, 8:24, :, 4:28] != 0).all()
    )
    (box,) = cases.windows("box_0")
    window, inside = cases.window("box_0", box)
    assert window.classes[inside].shape == SIZE
    assert inside == (slice(8, 24), slice(0, 24), slice(4, 28))


def test_labelled_cases__windows_cover_the_case(tmp_path: Path) -> None:
    cases = LabelledCases(make_probe(tmp_path), PATCH)
    seen = np.zeros(SIZE, dtype=int)
    for box in cases.windows("box_0"):
        window, inside = cases.window("box_0", box)
        part = tuple(map(slice, box.start, box.stop))
        seen[part] += 1
        labels = cases.data.folder.open("box_0").read_labels(np.zeros(3, dtype=int), np.array(SIZE))
        assert np.array_equal(window.classes[inside], labels[part])
    assert seen.min() == 1


def test_labelled_cases__ignored_voxels_are_marked_and_what_nnunet_cut_away_is_background(tmp_path: Path) -> None:
    data = replace(make_probe(tmp_path), ignore=3)
    labels = np.full(SIZE, -1, dtype=np.int16)
    labels[:, :8], labels[:, 8:16] = 3, 2
    add_labels(data.folder.images, "box_3", labels)
    cases = LabelledCases(data, SIZE)
    classes = cases.window("box_3", cases.windows("box_3")[0])[0].classes
    assert (classes[:, :8] == -1).all() and (classes[:, 8:16] == 2).all() and (classes[:, 16:] == 0).all()


def test_labelled_cases__regions_are_told_apart_by_their_values(tmp_path: Path) -> None:
    data = replace(make_probe(tmp_path), labels={"whole": (1, 4), "core": (4,)})
    assert data.values == (0, 1, 4)
    labels = np.zeros(SIZE, dtype=np.int16)
    labels[:4], labels[4:6] = 1, 4
    add_labels(data.folder.images, "box_0", labels)
    cases = LabelledCases(data, SIZE)
    assert np.unique(cases.window("box_0", cases.windows("box_0")[0])[0].classes).tolist() == [0, 1, 2]


def test_labelled_cases__a_value_that_dataset_json_does_not_name(tmp_path: Path) -> None:
    data = make_probe(tmp_path)
    add_labels(data.folder.images, "box_3", np.full(SIZE, 9, dtype=np.int16))
    cases = LabelledCases(data, SIZE)
    with pytest.raises(UserError, match="box_3 holds 9"):
        cases.window("box_3", cases.windows("box_3")[0])


@pytest.mark.parametrize("kind", ["training", "held-out"])
def test_labelled_cases__volumes_that_were_preprocessed_without_labels(tmp_path: Path, kind: str) -> None:
    data = make_probe(tmp_path)
    LabelledCases(data).check()
    for case in data.train if kind == "training" else data.held_out:
        add_labels(data.folder.images, case, np.zeros(SIZE, dtype=np.int16))
    with pytest.raises(UserError, match=f"no preprocessed {kind} case of Dataset017_Boxes has a labelled voxel"):
        LabelledCases(data).check()


def test_labelled_cases__keep_no_more_places_than_they_use(tmp_path: Path) -> None:
    data = make_probe(tmp_path)
    labels = np.full(SIZE, 2, dtype=np.int16)
    add_labels(data.folder.images, "box_0", labels)
    (places,) = LabelledCases(data, PATCH).places("box_0")
    assert len(places) <= 1000 and places.base is None and (places < SIZE).all()


def test_held_out_windows__cases_take_turns_and_labels_come_first(tmp_path: Path) -> None:
    cases = LabelledCases(make_probe(tmp_path, held_out=2), PATCH)
    windows = HeldOutWindows(cases)
    assert len(windows) == 16 and len(windows.first(100)) == 16
    assert [w.case for w in windows.first(4)] == ["box_2", "box_3"] * 2
    assert len(windows.first(0)) == 2  # one a case
    first, last = windows.first(1)[0], windows.first(16)[-1]
    counts = [(cases.window(w.case, w.box)[0].classes > 0).sum() for w in (first, last)]
    assert counts[0] > counts[1]


def test_labelled_cases__a_volume_that_is_gone_is_named(tmp_path: Path) -> None:
    cases = LabelledCases(make_probe(tmp_path), PATCH)
    (cases.data.folder.images / "box_0.b2nd").unlink()
    with pytest.raises(UserError, match=r"box_0\.b2nd is missing.*--c"):
        cases.windows("box_0")
