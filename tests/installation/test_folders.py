from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from nnssl.installation.environment import Check, check_folders, check_pretrainings, check_stock_plans

NAMES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The three folders, set and made, on a disk with room."""
    for name in NAMES:
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    _free(monkeypatch, 100.0)
    return tmp_path


def _free(monkeypatch: pytest.MonkeyPatch, gib: float) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=int(gib * 2**30)))


def _checks() -> dict[str, Check]:
    return {check.name: check for check in check_folders()}


def test_check_folders__in_order(folders: Path) -> None:
    checks = _checks()
    assert tuple(checks) == NAMES and {check.status for check in checks.values()} == {"ok"}
    assert "100 GiB free" in checks["nnUNet_raw"].message and str(folders) in checks["nnUNet_raw"].message


@pytest.mark.parametrize("name", NAMES)
def test_check_folders__not_set(name: str, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "")
    check = _checks()[name]
    assert check.status == "fail" and check.fix == f"export {name}=/path/to/{name}"


@pytest.mark.parametrize(("name", "status"), zip(NAMES, ("fail", "warn", "warn"), strict=True))
def test_check_folders__missing(name: str, status: str, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, str(folders / "not here"))
    check = _checks()[name]
    assert check.status == status and check.fix == f"mkdir -p '{folders}/not here'"


def test_check_folders__without_rights(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    checks = _checks()
    assert [checks[name].status for name in NAMES] == ["ok", "fail", "fail"]  # raw data are only read
    assert "cannot be written to" in checks["nnUNet_results"].message
    monkeypatch.setattr(os, "access", lambda path, mode: mode == os.W_OK)
    assert {(check.status, "cannot be read" in check.message) for check in _checks().values()} == {("fail", True)}


def test_check_folders__little_room(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _free(monkeypatch, 2.5)
    checks = _checks()
    assert [checks[name].status for name in NAMES] == ["ok", "warn", "warn"]
    assert "only 2.5 GiB free" in checks["nnUNet_preprocessed"].message and checks["nnUNet_preprocessed"].fix


def test_check_pretrainings__finished_ones_only(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (check,) = check_pretrainings()
    assert check.status == "ok" and "none is finished" in check.message
    results = folders / "nnUNet_results"
    finished = [f"Dataset50{i}_X/nnssl_vox2vec__nnUNetPlans__3d_fullres/fold_{f}/checkpoint_final.pth"
                for i, f in ((0, "all"), (1, "0"))]  # fmt: skip
    others = ["Dataset500_X/nnssl_vox2vec__P__3d_fullres/fold_all/checkpoint_latest.pth",
              "Dataset017_Y/nnUNetTrainer__nnUNetPlans__3d_fullres/fold_0/checkpoint_final.pth"]  # fmt: skip
    for name in [*finished, *others]:
        (results / name).parent.mkdir(parents=True, exist_ok=True)
        (results / name).touch()
    assert [(check.status, check.message) for check in check_pretrainings()] == [("ok", name) for name in finished]
    monkeypatch.delenv("nnUNet_results")
    assert list(check_pretrainings()) == []


def test_check_stock_plans__names_labelled_datasets_without_them(folders: Path) -> None:
    (check,) = check_stock_plans()
    assert check.status == "ok" and check.fix is None
    raw, preprocessed = folders / "nnUNet_raw", folders / "nnUNet_preprocessed"
    for name, label in {"Dataset017_A": 1, "Dataset018_B": 1, "Dataset0170_C": 1, "Dataset500_D": 0}.items():
        (raw / name / "labelsTr").mkdir(parents=True)
        labels = {"background": 0} | ({"liver": 1} if label else {})
        content = {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}
        (raw / name / "dataset.json").write_text(json.dumps(content))
        (raw / name / "labelsTr" / "case.nii.gz").touch()
    (raw / "Dataset019_E").mkdir()  # without dataset.json
    (check,) = check_stock_plans()
    # nnU-Net's own command could not tell 17 from 0170
    names = " && ".join(f"nnssl_plan_and_preprocess -d {n} -c 3d_fullres" for n in ("Dataset0170_C", "Dataset017_A"))
    assert check.status == "warn" and check.fix == f"nnUNetv2_plan_and_preprocess -d 18 -c 3d_fullres && {names}"
    assert "Dataset017_A" in check.message and "Dataset500_D" not in check.message
    for name in ("Dataset018_B", "Dataset017_A"):
        (preprocessed / name).mkdir()
        (preprocessed / name / "nnUNetPlans.json").touch()
    shutil.rmtree(raw / "Dataset0170_C")
    (check,) = check_stock_plans()
    assert check.status == "ok" and "2 labelled" in check.message


def test_check_stock_plans__says_nothing_where_there_are_no_folders() -> None:
    assert list(check_stock_plans()) == []
