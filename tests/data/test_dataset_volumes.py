from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnssl.core.errors import UserError
from nnssl.data.plan_and_preprocess import plan_and_preprocess, prepare_datasets
from nnssl.data.records import Records
from nnssl.data.storage import done_cases
from nnssl.pretraining.held_out import hold_out
from nnssl.pretraining.setup import case_labels
from tests.data.conftest import Folders
from tests.phantoms import ct_volume, write_ct_dataset, write_volume

TINY: dict[str, Any] = {"preset": "nnsslPlans_tiny", "num_processes": 1, "show_progress": False}
SPACING = (3.0, 1.5, 1.5)


@pytest.fixture
def raw(folders: Folders) -> Path:
    """Three cases with labels, two without."""
    folder = write_ct_dataset(folders.raw, 17, "Organs", 5, shape=(10, 20, 31), labelled=True)
    for case in ("case_001", "case_003"):
        (folder / f"labelsTr/{case}.nii.gz").unlink()
    return folder


def _labels(**options: Any) -> tuple[list[str], list[str]]:
    prepared = prepare_datasets([17], "nnsslPlans_tiny", "3d_fullres", 1, options.pop("may_preprocess", True))
    train, val = hold_out(prepared.folders, options.get("fold", "all"), 0)
    assert all(train.folders[train.folder_of[i]].open(str(train.names[i])).size.size == 3 for i in range(len(train)))
    return sorted(case_labels(train)), sorted(case_labels(val))


def _cases(labels: tuple[list[str], list[str]]) -> list[str]:
    return sorted([*labels[0], *labels[1]])


def _names(*cases: int) -> list[str]:
    return [f"Dataset017_Organs/case_{case:03d}" for case in cases]


def test_cases_without_label__are_trained_on_by_pretraining_alone(raw: Path, folders: Folders) -> None:
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class

    (result,) = plan_and_preprocess([17], **TINY)
    assert result.cases == ["case_000", "case_002", "case_004"]
    assert result.left_out.keys() == {"case_001", "case_003"} and "nnssl_pretrain" in result.left_out["case_001"]
    assert infer_dataset_class(str(result.folder))(str(result.folder)).identifiers == result.cases
    train, val = _labels()
    assert sorted(train + val) == _names(0, 1, 2, 3, 4) and len(val) == 1
    split = [{"train": ["case_000", "case_002"], "val": ["case_004"]}]
    (folders.preprocessed / raw.name / "splits_final.json").write_text(json.dumps(split))
    assert _labels(fold="0") == (_names(0, 1, 2, 3), _names(4))


def test_cases_without_label__are_made_once_and_anew_where_their_file_changed(raw: Path) -> None:
    _labels()
    (folder,) = [f.images for f in prepare_datasets([17], "nnsslPlans_tiny", "3d_fullres", 1, True).folders][1:]
    before = {case: (folder / f"{case}.b2nd").stat().st_mtime_ns for case in ("case_001", "case_003")}
    hu, _ = ct_volume((10, 20, 31), np.random.default_rng(7))
    write_volume(raw / "imagesTr/case_001_0000.nii.gz", hu, SPACING)
    _labels()
    assert (folder / "case_001.b2nd").stat().st_mtime_ns > before["case_001"]
    assert (folder / "case_003.b2nd").stat().st_mtime_ns == before["case_003"]


def test_cases_without_label__of_several_jobs_or_an_earlier_version(raw: Path, folders: Folders) -> None:
    _labels()
    folder = folders.preprocessed / raw.name / "nnsslPlans_tiny_3d_fullres_imagesTr_unlabelled"
    before = (folder / "case_001.b2nd").stat().st_mtime_ns
    records = Records(folder)
    record = records.get("case_001")
    assert record is not None and record.files is not None and record.files.images[0].digest
    records.append([replace(record, begun=True)])  # a job that was killed while it replaced the volume
    records.file.with_name("settings.json").unlink()
    assert _cases(_labels(may_preprocess=False)) == _names(0, 2, 3, 4)
    assert _cases(_labels()) == _names(0, 1, 2, 3, 4)
    assert (folder / "case_001.b2nd").stat().st_mtime_ns > before
    records.file.unlink()  # as earlier versions left the folder
    made = {case: (folder / f"{case}.b2nd").stat().st_mtime_ns for case in ("case_001", "case_003")}
    _labels()
    assert made == {case: (folder / f"{case}.b2nd").stat().st_mtime_ns for case in made}


def test_cases_without_label__that_get_a_wrong_one_are_not_used_without_it(raw: Path) -> None:
    _labels()
    (raw / "labelsTr/case_001.nii.gz").write_bytes(b"no label")
    (result,) = plan_and_preprocess([17], **TINY)
    assert result.left_out.keys() == {"case_001", "case_003"}
    assert _cases(_labels(may_preprocess=False)) == _names(0, 2, 3, 4)
    (raw / "labelsTr/case_001.nii.gz").unlink()
    assert _cases(_labels()) == _names(0, 1, 2, 3, 4)


def test_cases_without_label__that_get_one_or_are_withdrawn(raw: Path) -> None:
    _labels()
    shutil.copy(raw / "labelsTr/case_000.nii.gz", raw / "labelsTr/case_001.nii.gz")
    (raw / "imagesTr/case_003_0000.nii.gz").unlink()
    (result,) = plan_and_preprocess([17], **TINY)
    assert result.cases == ["case_000", "case_001", "case_002", "case_004"] and result.left_out == {}
    assert len(prepare_datasets([17], "nnsslPlans_tiny", "3d_fullres", 1, False).folders) == 1


def test_cases_without_label__stay_when_the_raw_images_are_archived(raw: Path) -> None:
    _labels()
    shutil.rmtree(raw)
    train, val = _labels()
    assert sorted(train + val) == _names(0, 1, 2, 3, 4)
    assert _labels(may_preprocess=False) == (train, val)


def test_cases_without_label__that_cannot_be_used_are_named(raw: Path, folders: Folders) -> None:
    (raw / "imagesTr/case_003_0000.nii.gz").write_bytes(b"no image")
    (result,) = plan_and_preprocess([17], **TINY)
    assert result.left_out["case_003"].startswith("unreadable image")
    report = json.loads((folders.preprocessed / raw.name / "nnsslPlans_tiny_left_out.json").read_text())
    assert report["left_out"] == result.left_out
    with pytest.raises(UserError, match=r"case_001: no label.*case_003: unreadable"):
        plan_and_preprocess([17], strict=True, **TINY)


def test_cases_without_label__are_shared_by_parts(raw: Path, folders: Folders) -> None:
    plan_and_preprocess([17], preprocess=False, **TINY)
    for part in range(2):
        plan_and_preprocess([17], num_parts=2, part_id=part, **TINY)
    home = folders.preprocessed / raw.name
    assert done_cases(home / "nnsslPlans_tiny_3d_fullres_imagesTr_unlabelled") == {"case_001", "case_003"}
    train, val = _labels(may_preprocess=False)
    assert sorted(train + val) == _names(0, 1, 2, 3, 4)
