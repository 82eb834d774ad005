"""What is on the disk against what is in nnUNet_raw, through `plan_and_preprocess`."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from nnssl.core.errors import UserError
from nnssl.data import dataset_run, folder_volumes
from nnssl.data.plan_and_preprocess import plan_and_preprocess
from nnssl.data.records import Records
from nnssl.data.storage import body_folder
from nnssl.data.volumes import VolumeFolder
from tests.data.conftest import Folders
from tests.phantoms import write_ct_dataset

SHAPE = (12, 20, 20)
NAME = "Dataset001_X"
CASES = ["case_000", "case_001", "case_002"]


class Runs:
    """Runs of the command, and which cases each of them has prepared or scanned."""

    def __init__(self, folders: Folders, patch: pytest.MonkeyPatch) -> None:
        self.folders, self.prepared, self.scans = folders, list[str](), 0
        prepare, scan = folder_volumes.prepare_case, dataset_run.scan_dataset

        def watched_prepare(case: Any, job: Any) -> Any:
            self.prepared.append(case if isinstance(case, str) else case.name)
            return prepare(case, job)

        def watched_scan(*arguments: Any) -> Any:
            self.scans += 1
            return scan(*arguments)

        patch.setattr(folder_volumes, "prepare_case", watched_prepare)
        patch.setattr(dataset_run, "scan_dataset", watched_scan)

    def __call__(self, *ids: int, **options: Any) -> Any:
        self.prepared, self.scans = [], 0
        asked = {"preset": "nnsslPlans_tiny", "num_processes": 1, "show_progress": False, **options}
        return plan_and_preprocess(list(ids) or [1], **asked)[0]

    @property
    def raw(self) -> Path:
        return self.folders.raw / NAME

    @property
    def home(self) -> Path:
        return self.folders.preprocessed / NAME

    @property
    def data(self) -> Path:
        return self.home / "nnsslPlans_tiny_3d_fullres"

    @property
    def readable(self) -> list[str]:
        """What a pretraining finds."""
        plans = json.loads((self.home / "nnsslPlans_tiny.json").read_text())
        return VolumeFolder.from_plans(self.folders.preprocessed, NAME, plans, "3d_fullres").cases()

    def files(self) -> dict[str, tuple[bytes, int]]:
        return {str(f): (f.read_bytes(), f.stat().st_mtime_ns) for f in self.home.rglob("*") if f.is_file()}

    def report(self) -> dict[str, Any]:
        return dict(json.loads((self.home / "nnsslPlans_tiny_left_out.json").read_text()))


@pytest.fixture
def run(folders: Folders, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Runs:
    """Three labelled cases, prepared."""
    write_ct_dataset(folders.raw, 1, "X", 3, SHAPE, labelled=True)
    caplog.set_level(logging.INFO, logger="nnssl")
    runs = Runs(folders, monkeypatch)
    runs()
    assert runs.prepared == CASES
    caplog.clear()
    return runs


def _edit(file: Path, change: Any) -> None:
    image = sitk.ReadImage(str(file))
    array = sitk.GetArrayFromImage(image)
    change(array)
    edited = sitk.GetImageFromArray(array)
    edited.CopyInformation(image)
    sitk.WriteImage(edited, str(file), useCompression=True)


def _edit_json(file: Path, **entries: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def _values(run: Runs, file: str) -> np.ndarray:
    import blosc2

    return np.asarray(blosc2.open(str(run.data / file), mode="r")[:])


def _forget_records(run: Runs) -> None:
    (body_folder(run.data) / "records.jsonl").unlink()


def test_corrected_files_are_said_and_prepared_again(run: Runs, caplog: pytest.LogCaptureFixture) -> None:
    _edit(run.raw / "labelsTr" / "case_001.nii.gz", lambda a: a.__setitem__(slice(None), 0))
    _edit(run.raw / "imagesTr" / "case_002_0000.nii.gz", lambda a: a.__iadd__(100))
    before = _values(run, "case_002.b2nd").mean()
    result = run()
    assert run.prepared == CASES[1:] == result.cases[1:]
    assert "case_001 (label), case_002 (image)" in caplog.text and "2 volumes" in caplog.text
    assert _values(run, "case_001_seg.b2nd").max() == 0 and _values(run, "case_002.b2nd").mean() > before
    copied, raw = run.home / "gt_segmentations" / "case_001.nii.gz", run.raw / "labelsTr" / "case_001.nii.gz"
    assert copied.read_bytes() == raw.read_bytes()
    run()
    assert run.prepared == []


def test_touched_files_are_no_change_and_their_records_are_renewed(run: Runs) -> None:
    for file in (run.raw / "imagesTr").iterdir():
        os.utime(file)
    run()
    assert run.prepared == []
    before = run.files()
    run()
    assert run.files() == before  # nothing is left to note


def test_a_correction_of_the_same_size_is_seen_by_its_hash(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    write_ct_dataset(folders.raw, 1, "X", 2, SHAPE, file_ending=".mha")
    for file in (folders.raw / NAME / "imagesTr").iterdir():
        sitk.WriteImage(sitk.ReadImage(str(file)), str(file), useCompression=False)
    run = Runs(folders, monkeypatch)
    run()
    file = folders.raw / NAME / "imagesTr" / "case_001_0000.mha"
    content = file.read_bytes()
    file.write_bytes(content[:-400] + b"\x10\x00" * 200)
    run()
    assert run.prepared == ["case_001"]


def test_volumes_without_a_record_are_used_as_they_are(run: Runs, caplog: pytest.LogCaptureFixture) -> None:
    _forget_records(run)
    assert run().cases == CASES and run.prepared == []
    found = Records(run.data).get("case_001")
    assert found is not None and found.files is not None and found.files.images[0].digest is None
    assert found.orientation == "LPS" and found.prepared is None
    os.utime(run.raw / "labelsTr" / "case_001.nii.gz")
    assert run().cases == CASES and run.prepared == []
    assert "raw files of 1 volumes have another time" in caplog.text and "--overwrite_volumes" in caplog.text
    found = Records(run.data).get("case_001")
    assert found is not None and found.files is not None and found.files.label is not None and found.files.label.digest
    _edit(run.raw / "labelsTr" / "case_001.nii.gz", lambda a: a.__setitem__(slice(None), 1))
    run()
    assert run.prepared == ["case_001"]


def test_removed_cases_are_not_used_until_they_are_back(run: Runs, caplog: pytest.LogCaptureFixture) -> None:
    image, label = run.raw / "imagesTr" / "case_001_0000.nii.gz", run.raw / "labelsTr" / "case_001.nii.gz"
    aside = run.raw.parent / "aside"
    aside.mkdir()
    for file in (image, label):
        file.rename(aside / file.name)
    (run.home / "splits_final.json").write_text(json.dumps([{"train": CASES[:2], "val": CASES[2:]}]))
    volumes = {f.name: f.read_bytes() for f in run.data.iterdir()}
    result = run()
    assert result.cases == run.readable == ["case_000", "case_002"] and result.left_out == {}
    assert "case_001" in caplog.text and str(run.data) in caplog.text and "nnUNetv2_train" in caplog.text
    assert "splits_final.json names 1 cases" in caplog.text
    assert {f.name: f.read_bytes() for f in run.data.iterdir()} == volumes  # nothing is deleted
    run.raw.rename(aside / "archived")
    assert run().cases == run.readable == ["case_000", "case_002"]  # known without the raw dataset
    (aside / "archived").rename(run.raw)
    for file in (image, label):
        (aside / file.name).rename(file)
    assert run().cases == run.readable == CASES and run.prepared == []
    assert not (run.home / "nnssl_withdrawn.json").exists()


@pytest.mark.parametrize("what", ["dataset", "images"])
def test_an_archived_raw_dataset_withdraws_nobody(run: Runs, what: str) -> None:
    gone = run.raw if what == "dataset" else run.raw / "imagesTr"
    gone.rename(run.raw.parent / "archive")
    assert run().cases == run.readable == CASES and run.prepared == []
    with pytest.raises(UserError, match=r"--overwrite_volumes.*raw images"):
        run(overwrite_volumes=True)


def test_a_disk_that_is_away_withdraws_nobody(run: Runs, caplog: pytest.LogCaptureFixture) -> None:
    image = run.raw / "imagesTr" / "case_001_0000.nii.gz"
    image.unlink()
    image.symlink_to("/a/disk/that/is/away")
    assert run().cases == run.readable == CASES and run.prepared == []
    assert f"cannot be looked at ({image})" in caplog.text


def test_a_case_that_loses_its_label_is_not_used_as_it_was(run: Runs) -> None:
    (run.raw / "labelsTr" / "case_001.nii.gz").unlink()
    result = run()
    assert result.left_out.keys() == {"case_001"} and "case_001" not in run.readable
    run()
    assert run.prepared == []


def test_a_corrected_file_that_is_broken_leaves_its_case_out(run: Runs) -> None:
    file = run.raw / "imagesTr" / "case_001_0000.nii.gz"
    content = file.read_bytes()
    file.write_bytes(content[:100])
    result = run()
    assert result.left_out.keys() == {"case_001"} and run.readable == ["case_000", "case_002"]
    assert (run.data / "case_001.b2nd").is_file()  # nothing is deleted before its replacement is complete
    file.write_bytes(content)
    assert run().cases == run.readable == CASES and run.prepared == ["case_001"]


def test_changed_labels_reach_the_copy_and_the_volumes(run: Runs, caplog: pytest.LogCaptureFixture) -> None:
    _edit_json(run.raw / "dataset.json", labels={"background": 0, "hepar": 1, "spine": 2})
    run()
    assert run.prepared == []  # names are no change of the volumes
    assert json.loads((run.home / "dataset.json").read_text())["labels"]["hepar"] == 1
    _edit_json(
        run.raw / "dataset.json", labels={"background": 0, "both": [1, 2], "spine": 2}, regions_class_order=[1, 2]
    )
    run()
    assert run.prepared == CASES and "3 volumes are prepared again" in caplog.text
    import pickle

    with open(run.data / "case_000.pkl", "rb") as file:
        assert (1, 2) in pickle.load(file)["class_locations"]
    run()
    assert run.prepared == []


def test_labels_that_changed_before_there_were_records(run: Runs, caplog: pytest.LogCaptureFixture) -> None:
    run(overwrite_plans_name="others")
    _forget_records(run)
    _edit_json(
        run.raw / "dataset.json", labels={"background": 0, "both": [1, 2], "spine": 2}, regions_class_order=[1, 2]
    )
    run(overwrite_plans_name="others")
    assert run.prepared == CASES and "nnsslPlans_tiny_3d_fullres know the former ones" in caplog.text
    run()
    assert run.prepared == CASES


def test_a_channel_that_is_added_needs_other_plans(run: Runs) -> None:
    for file in list((run.raw / "imagesTr").iterdir()):
        shutil.copy(file, file.with_name(file.name.replace("_0000", "_0001")))
    _edit_json(run.raw / "dataset.json", channel_names={"0": "CT", "1": "PET"})
    before = run.files()
    with pytest.raises(UserError, match=r"1 channels \(CTNormalization\).*CT, PET.*-d Dataset001_X.*--overwrite_plans"):
        run()
    assert run.files() == before
    result = run(overwrite_plans=True)
    assert run.scans == 1 and run.prepared == result.cases == CASES == run.readable
    assert _values(run, "case_000.b2nd").shape[0] == 2


def test_another_kind_of_channel_needs_other_plans(run: Runs) -> None:
    _edit_json(run.raw / "dataset.json", channel_names={"0": "T1"})
    with pytest.raises(UserError, match="--overwrite_plans"):
        run()
    run(overwrite_plans=True)
    assert run.prepared == CASES
    run()
    assert run.prepared == []


def test_overwrite_plans__volumes_are_replaced_one_by_one(run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted at the second case, and continued by the same line or by any other."""
    watched = folder_volumes.prepare_case
    _forget_records(run)  # as a folder of before

    def dies(case: Any, job: Any) -> Any:
        if case.name == "case_001":
            raise KeyboardInterrupt
        return watched(case, job)

    asked = {"preset": None, "planner": "ExperimentPlanner", "overwrite_plans_name": "nnsslPlans_tiny"}
    spacing = {"overwrite_target_spacing": (6.0, 3.0, 3.0), "overwrite_plans": True}
    monkeypatch.setattr(folder_volumes, "prepare_case", dies)
    with pytest.raises(KeyboardInterrupt):
        run(**asked, **spacing)
    monkeypatch.setattr(folder_volumes, "prepare_case", watched)
    assert all((run.data / f"{case}{end}").is_file() for case in CASES for end in (".b2nd", "_seg.b2nd", ".pkl"))
    assert run.readable == ["case_000"]  # nothing of other plans is read
    assert run(**asked, **spacing).cases == run.readable == CASES
    assert run.prepared == CASES[1:]
    assert {_values(run, f"{case}.b2nd").shape for case in CASES} == {(1, 6, 10, 10)}
    assert run().cases == CASES and run.prepared == []


def test_overwrite_plans__what_cannot_be_made_anew_is_not_used(run: Runs) -> None:
    asked = {"preset": None, "planner": "ExperimentPlanner", "overwrite_plans_name": "nnsslPlans_tiny"}
    (run.raw / "imagesTr" / "case_002_0000.nii.gz").write_bytes(b"")
    result = run(**asked, overwrite_target_spacing=(6.0, 3.0, 3.0), overwrite_plans=True)
    assert run.scans == 1  # the raw data changed
    assert result.left_out.keys() == {"case_002"} and run.readable == result.cases == CASES[:2]
    assert (run.data / "case_002.b2nd").is_file()


def test_overwrite_plans__same_settings_keep_fingerprint_and_volumes(run: Runs) -> None:
    run(overwrite_plans=True)
    assert (run.prepared, run.scans) == ([], 0)


def test_plans_with_another_reader_make_other_volumes(run: Runs) -> None:
    settings = body_folder(run.data) / "settings.json"
    content = json.loads(settings.read_text())
    assert "reader" not in content  # as an older version noted it: all but one give the same values
    _edit_json(run.home / "nnsslPlans_tiny.json", image_reader_writer="NibabelIOWithReorient")
    with pytest.raises(UserError, match=r"reader changed"):
        run()
    assert run.readable == [] and run(overwrite_volumes=True).cases == CASES == run.readable


def test_overwrite_volumes__prepares_all_anew(run: Runs) -> None:
    assert run(overwrite_volumes=True).cases == run.prepared == CASES
    _edit_json(run.home / "nnsslPlans_tiny.json", transpose_forward=[2, 1, 0], transpose_backward=[2, 1, 0])
    with pytest.raises(UserError, match=r"transpose_forward changed.*-p nnsslPlans_tiny .*--overwrite_volumes"):
        run()
    assert run.readable == []
    assert run(overwrite_volumes=True).cases == run.prepared == CASES == run.readable
    with pytest.raises(UserError, match="--no_pp"):
        run(overwrite_volumes=True, preprocess=False)


def test_a_half_replaced_volume_is_not_read(run: Runs) -> None:
    records = Records(run.data)
    record = records.get("case_001")
    assert record is not None
    records.append([folder_volumes.replace(record, begun=True)])  # as a killed job leaves it
    assert run.readable == ["case_000", "case_002"]
    run()
    assert run.prepared == ["case_001"] and run.readable == CASES


@pytest.mark.parametrize("other", [True, False])
def test_a_split_that_comes_with_the_raw_dataset_is_taken(run: Runs, other: bool) -> None:
    folds = [{"train": CASES[:1], "val": CASES[1:]}]
    (run.raw / "splits_final.json").write_text(json.dumps(folds))
    file = run.home / "splits_final.json"
    if other:
        file.write_text(json.dumps([{"train": CASES[1:], "val": CASES[:1]}]))
        with pytest.raises(UserError, match=r"raw/Dataset001_X/splits_final\.json.*different splits"):
            run()
    else:
        write_ct_dataset(run.folders.raw, 2, "Y", 2, SHAPE, labelled=True)
        shutil.copy(run.raw / "splits_final.json", run.folders.raw / "Dataset002_Y")
        run(1, 2)  # plans that exist, and adopted ones
        assert json.loads(file.read_text()) == folds
        assert (run.folders.preprocessed / "Dataset002_Y" / "splits_final.json").is_file()


def test_reports_cover_all_cases_after_an_interruption(run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = folder_volumes.prepare_case

    def dies(case: Any, job: Any) -> Any:
        if case.name == "case_002":
            raise KeyboardInterrupt
        return watched(case, job)

    for file in [run.home / "nnsslPlans_tiny_left_out.json", *body_folder(run.data).iterdir(), *run.data.iterdir()]:
        file.unlink()
    monkeypatch.setattr(folder_volumes, "prepare_case", dies)
    with pytest.raises(KeyboardInterrupt):
        run()
    monkeypatch.setattr(folder_volumes, "prepare_case", watched)
    run()
    assert run.prepared == ["case_002"] and run.report()["orientation"]["counts"] == {"LPS": 3}
    before = run.files()
    run()
    run(preprocess=False)
    assert run.files() == before  # a report that says nothing new is not written


def _read_only(run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a folder of somebody else: tests run as root, whom permissions do not stop."""
    access, opened, mkdir = os.access, os.open, os.mkdir
    inside = str(run.folders.preprocessed)

    def refused(path: Any, *arguments: Any, **options: Any) -> Any:
        if str(path).startswith(inside):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return mkdir(path, *arguments, **options)

    def only_read(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if str(path).startswith(inside) and flags & (os.O_WRONLY | os.O_RDWR):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(inside) and access(path, mode))
    monkeypatch.setattr(os, "mkdir", refused)
    monkeypatch.setattr(os, "open", only_read)


@pytest.mark.parametrize("recorded", [True, False])
def test_a_folder_that_can_only_be_read_works_where_all_is_ready(
    run: Runs, monkeypatch: pytest.MonkeyPatch, recorded: bool
) -> None:
    for folder, end in (("imagesTr", "_0000"), ("labelsTr", "")):
        (run.raw / folder / f"odd{end}.nii.gz").write_bytes(b"")
    assert run().left_out.keys() == {"odd"}
    if not recorded:
        _forget_records(run)
        (body_folder(run.data) / "settings.json").unlink()
        os.utime(run.raw / "imagesTr" / "case_001_0000.nii.gz")
    before = run.files()
    _read_only(run, monkeypatch)
    result = run()
    assert (result.left_out.keys(), result.cases, run.prepared) == ({"odd"}, CASES, [])
    assert run.files() == before


@pytest.mark.parametrize("change", ["volume", "withdrawn", "plans", "label"])
def test_a_folder_that_can_only_be_read_is_named_where_it_must_be_written_to(
    run: Runs, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    options: dict[str, Any] = {}
    if change == "volume":
        (body_folder(run.data) / "case_001.b2nd").unlink()
    elif change == "withdrawn":
        (run.raw / "imagesTr" / "case_001_0000.nii.gz").unlink()
    elif change == "plans":
        options["overwrite_plans_name"] = "others"
    else:
        (run.home / "gt_segmentations" / "case_001.nii.gz").unlink()
    _read_only(run, monkeypatch)
    with pytest.raises(UserError, match=rf"{run.home}.*(case_001|ask its owner)"):
        run(**options)
