from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from nnssl.core.errors import UserError
from nnssl.data.plan_and_preprocess import PreparedDatasets, plan_and_preprocess, prepare_datasets
from nnssl.pretraining.probe_data import LabelledCases, ProbeData, prepare_probe
from tests.phantoms import write_ct_dataset, write_mr_dataset
from tests.pretraining.labelled import SIZE, add_labels, make_probe

PLANS = "nnsslPlans_tiny"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """nnU-Net's folders: 500 unlabelled and preprocessed, 17 labelled, 18 of two channels, 19 of one case, 20 of MR."""
    root = tmp_path_factory.mktemp("nnunet")
    with pytest.MonkeyPatch.context() as patch:
        _set_folders(patch, root)
        write_ct_dataset(root / "raw", 500, "Phantom", 3, shape=(20, 32, 32))
        write_ct_dataset(root / "raw", 17, "Organs", 6, shape=(20, 32, 32), labelled=True)
        write_mr_dataset(root / "raw", 18, "Heads", 2, labelled=True)
        write_mr_dataset(root / "raw", 20, "Head", 2, labelled=True, num_channels=1)
        write_ct_dataset(root / "raw", 19, "One", 1, shape=(20, 32, 32), labelled=True)
        plan_and_preprocess([500], preset=PLANS, num_processes=1, show_progress=False)
    return root


@pytest.fixture
def prepared(root: Path, monkeypatch: pytest.MonkeyPatch) -> PreparedDatasets:
    _set_folders(monkeypatch, root)
    return prepare_datasets([500], PLANS, "3d_fullres", 1, True)


def _set_folders(patch: pytest.MonkeyPatch, root: Path) -> None:
    for name in ("raw", "preprocessed", "results"):
        (root / name).mkdir(exist_ok=True)
        patch.setenv(f"nnUNet_{name}", str(root / name))


def _probe(prepared: PreparedDatasets, dataset: int, every: int | None = None, may: bool = True) -> ProbeData:
    return prepare_probe(dataset, prepared, "3d_fullres", every, 1, may)


def test_prepare_probe__preprocesses_with_the_plans_of_the_run(root: Path, prepared: PreparedDatasets) -> None:
    probe = _probe(prepared, 17)
    assert probe.folder.images == root / "preprocessed" / "Dataset017_Organs" / f"{PLANS}From500_3d_fullres"
    assert probe.folder.spacing == prepared.folders[0].spacing and probe.folder.channels == prepared.folders[0].channels
    assert probe.labels == {"liver": (1,), "spine": (2,)} and probe.values == (0, 1, 2) and probe.ignore is None
    assert len(probe.held_out) == 1 and len(probe.train) == 5 and not set(probe.train) & set(probe.held_out)
    assert json.loads(json.dumps(probe.identity))["dataset"] == "Dataset017_Organs"
    assert _probe(prepared, 17, may=False) == probe  # as the processes of torchrun find it


def test_prepare_probe__fold_0_of_the_splits_is_held_out(root: Path, prepared: PreparedDatasets) -> None:
    cases = [f"case_{i:03d}" for i in range(6)]
    _probe(prepared, 17)
    splits = root / "preprocessed" / "Dataset017_Organs" / "splits_final.json"
    splits.write_text(json.dumps([{"train": cases[:1], "val": cases[1:]}]))
    try:
        probe = _probe(prepared, 17)
    finally:
        splits.unlink()
    assert probe.train == ("case_000",)
    assert len(probe.held_out) == 4 and set(probe.held_out) <= set(cases[1:])  # at most four are scored


def test_prepare_probe__a_dataset_of_the_run_is_taken_as_it_is(root: Path, prepared: PreparedDatasets) -> None:
    own = prepare_datasets([17], PLANS, "3d_fullres", 1, True)
    assert _probe(own, 17).folder is own.folders[0]


def test_prepare_probe__says_that_the_probe_is_oriented_differently(
    prepared: PreparedDatasets, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def oriented(home: Path, plans: str) -> str:
        return "RAS" if home.name == "Dataset017_Organs" else "LPS"

    monkeypatch.setattr("nnssl.data.plan_and_preprocess.majority_orientation", oriented)
    _probe(prepared, 17)
    assert (
        "oriented differently than Dataset500_Phantom (LPS): most volumes of the probe Dataset017_Organs (RAS)"
        in caplog.text
    )


def test_prepare_probe__ignore_label_and_regions(root: Path, prepared: PreparedDatasets) -> None:
    _probe(prepared, 17)
    file = root / "raw" / "Dataset017_Organs" / "dataset.json"
    before = file.read_text()
    content = json.loads(before)
    content["labels"] = {"background": 0, "whole": [1, 2], "spine": 2, "ignore": 3}
    content["regions_class_order"] = [1, 2]
    file.write_text(json.dumps(content))
    try:
        probe = _probe(prepared, 17)
    finally:
        file.write_text(before)
    assert probe.labels == {"whole": (1, 2), "spine": (2,)} and probe.ignore == 3 and probe.values == (0, 1, 2)


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (500, "Dataset500_Phantom has no labels"),
        (18, "Dataset018_Heads has the channels T1, T2 and Dataset500_Phantom has CT"),
        (20, r"MR \(T1\) in Dataset020_Head, CT in Dataset500_Phantom.*--allow_other_intensities"),
        (19, "Dataset019_One has 1 preprocessed cases"),
        (77, "there is no dataset 77"),
    ],
)
def test_prepare_probe__says_what_is_wrong(prepared: PreparedDatasets, dataset: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        _probe(prepared, dataset)


def test_prepare_probe__another_modality_may_be_allowed(
    prepared: PreparedDatasets, caplog: pytest.LogCaptureFixture
) -> None:
    probe = prepare_probe(20, prepared, "3d_fullres", None, 1, True, allow_other_intensities=True)
    assert probe.folder.channels[0].is_ct and len(probe.train) == 1  # it has the plans of the run
    assert caplog.text.count("lets it pass") == 1


def test_prepare_probe__labels_that_were_never_preprocessed_are_missed_before_the_run(
    prepared: PreparedDatasets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LabelledCases, "places", lambda self, case: [])
    with pytest.raises(UserError, match="no preprocessed training case of Dataset017_Organs has a labelled voxel"):
        _probe(prepared, 17)


def test_prepare_probe__wrong_interval(prepared: PreparedDatasets) -> None:
    with pytest.raises(UserError, match="-probe_every takes"):
        _probe(prepared, 17, every=0)


def test_prepare_probe__processes_that_train_together_do_not_preprocess(
    tmp_path: Path, prepared: PreparedDatasets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_raw", str(tmp_path))
    write_ct_dataset(tmp_path, 21, "New", 2, shape=(20, 32, 32), labelled=True)
    with pytest.raises(UserError, match="run nnssl_plan_and_preprocess -d 500 21 -p nnsslPlans_tiny first"):
        _probe(prepared, 21, may=False)


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
    windows = cases.held_out_windows()
    assert len(windows) == 16
    assert [w.case for w in windows[:4]] == ["box_2", "box_3"] * 2
    counts = [(cases.window(w.case, w.box)[0].classes > 0).sum() for w in (windows[0], windows[-1])]
    assert counts[0] > counts[1]


def test_labelled_cases__a_volume_that_is_gone_is_named(tmp_path: Path) -> None:
    cases = LabelledCases(make_probe(tmp_path), PATCH)
    (cases.data.folder.images / "box_0.b2nd").unlink()
    with pytest.raises(UserError, match=r"box_0\.b2nd is missing.*--c"):
        cases.windows("box_0")
