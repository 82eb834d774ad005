from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from nnssl.installation.check import Check
from nnssl.installation.folders import check_folders, check_pretrainings

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
