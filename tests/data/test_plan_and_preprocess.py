from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nnssl.core.errors import UserError
from nnssl.data.plan_and_preprocess import plan_and_preprocess
from nnssl.data.volumes import VolumeFolder
from tests.data.conftest import Folders
from tests.phantoms import ct_volume, write_ct_dataset, write_mr_dataset, write_volume

TINY: dict[str, Any] = {"preset": "nnsslPlans_tiny", "num_processes": 1}
RAS = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)


def test_plan_and_preprocess__every_nnunet_tool_can_open_the_result(folders: Folders) -> None:
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    write_ct_dataset(folders.raw, 1, "X", 3)
    (result,) = plan_and_preprocess([1], num_processes=1)
    home = folders.preprocessed / "Dataset001_X"
    plans = PlansManager(str(home / "nnUNetPlans.json"))
    assert result.folder == home / plans.get_configuration("3d_fullres").data_identifier
    assert (result.name, result.plans_name, result.left_out) == ("Dataset001_X", "nnUNetPlans", {})
    dataset = infer_dataset_class(str(result.folder))(str(result.folder))
    assert dataset.identifiers == result.cases == ["case_000", "case_001", "case_002"]
    image, seg, _, properties = dataset.load_case("case_001")
    assert image.shape == (1, 24, 40, 40)
    assert seg.shape == image.shape
    assert "class_locations" not in properties
    assert {file.name for file in home.iterdir()} == {
        "dataset.json", "dataset_fingerprint.json", "nnUNetPlans.json", "nnUNetPlans_left_out.json",
        "nnUNetPlans_3d_fullres", "nnUNetPlans_3d_fullres_body",
    }  # fmt: skip
    volumes = VolumeFolder.from_plans(folders.preprocessed, result.name, plans.plans, "3d_fullres")
    assert volumes.cases() == result.cases
    z, y, x = volumes.open("case_000").random_body_voxel(np.random.default_rng(0))
    assert 0 <= z < 24 and 0 < y < 39 and 0 < x < 39


def _bad_volumes(folder: Path) -> dict[str, str]:
    """Add one volume of every bad kind; the start of the reason by case."""
    images, spacing = folder / "imagesTr", (3.0, 1.5, 1.5)
    good, _ = ct_volume((24, 40, 40), np.random.default_rng(9))
    with_nan = good.astype(np.float32)
    with_nan[3, 3, 3] = np.nan
    arrays = {
        "air": (np.where(good > -900, -900, good), "all air"),
        "empty": (np.zeros_like(good), "empty"),
        "flat": (good[:1], "2-D"),
        "nan": (with_nan, "non-finite"),
        "small": (good[:3], "too small"),
    }
    for name, (array, _) in arrays.items():
        write_volume(images / f"{name}_0000.nii.gz", array, spacing)
    (images / "broken_0000.nii.gz").write_bytes(b"no image")
    write_volume(images / "channels_0000.nii.gz", good, spacing)
    write_volume(images / "channels_0001.nii.gz", good, spacing)
    return {name: reason for name, (_, reason) in arrays.items()} | {
        "broken": "unreadable",
        "channels": "wrong channels",
    }


def test_plan_and_preprocess__bad_volumes_are_named_and_the_others_done(
    folders: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    bad = _bad_volumes(write_ct_dataset(folders.raw, 1, "X", 2))
    with caplog.at_level(logging.INFO, logger="nnssl"):
        (result,) = plan_and_preprocess([1], **TINY)
    assert result.cases == ["case_000", "case_001"]
    assert result.left_out.keys() == bad.keys()
    for case, reason in bad.items():
        assert result.left_out[case].startswith(reason), case
        assert f"left out: {case}: {reason}" in caplog.text
    report = json.loads((result.folder.parent / "nnsslPlans_tiny_left_out.json").read_text())
    assert report["left_out"] == result.left_out
    fingerprint = json.loads((result.folder.parent / "dataset_fingerprint.json").read_text())
    assert len(fingerprint["spacings"]) == 2

    # Again, with the fingerprint and the plans there: found once more, and one that was mended is done.
    good, _ = ct_volume((24, 40, 40), np.random.default_rng(9))
    write_volume(folders.raw / "Dataset001_X" / "imagesTr" / "empty_0000.nii.gz", good, (3.0, 1.5, 1.5))
    (again,) = plan_and_preprocess([1], **TINY)
    assert again.cases == ["case_000", "case_001", "empty"]
    assert again.left_out.keys() == bad.keys() - {"empty"}
    with pytest.raises(UserError, match=r"--strict.*air: all air.*small: too small"):
        plan_and_preprocess([1], **TINY, strict=True)


def test_plan_and_preprocess__strict_refuses_before_the_work(folders: Folders) -> None:
    _bad_volumes(write_ct_dataset(folders.raw, 1, "X", 2))
    with pytest.raises(UserError, match=r"--strict.*broken: unreadable"):
        plan_and_preprocess([1], **TINY, strict=True)
    assert not (folders.preprocessed / "Dataset001_X" / "nnsslPlans_tiny_3d_fullres").exists()


def test_plan_and_preprocess__all_bad(folders: Folders) -> None:
    folder = write_ct_dataset(folders.raw, 1, "X", 2)
    for file in (folder / "imagesTr").iterdir():
        write_volume(file, np.full((8, 8, 8), -1000, np.int16), (1, 1, 1))
    with pytest.raises(UserError, match=r"no volume can be used.*case_000: all air"):
        plan_and_preprocess([1], **TINY)
    assert not list(folders.preprocessed.glob("*/*"))


def test_plan_and_preprocess__labels_of_bad_shape_and_missing(folders: Folders) -> None:
    folder = write_ct_dataset(folders.raw, 1, "X", 4, labelled=True)
    write_volume(folder / "labelsTr" / "case_001.nii.gz", np.zeros((24, 40, 39), np.uint8), (3, 1.5, 1.5))
    (folder / "labelsTr" / "case_002.nii.gz").unlink()
    (result,) = plan_and_preprocess([1], **TINY)
    assert result.cases == ["case_000", "case_003"]
    assert result.left_out["case_001"].startswith("label of another shape")
    assert result.left_out["case_002"].startswith("no label")
    copied = {file.name for file in (result.folder.parent / "gt_segmentations").iterdir()}
    assert copied == {"case_000.nii.gz", "case_003.nii.gz"}


def test_plan_and_preprocess__orientation_is_counted_and_named(
    folders: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_ct_dataset(folders.raw, 1, "X", 3)
    hu, _ = ct_volume((24, 40, 40), np.random.default_rng(5))
    write_volume(folder / "imagesTr" / "case_002_0000.nii.gz", hu, (3.0, 1.5, 1.5), RAS)
    for _ in range(2):  # the second time nothing is read, and it is still known
        caplog.clear()
        (result,) = plan_and_preprocess([1], **TINY)
        assert "not oriented LPS as the others: case_002 (RAS) (1 of 3)" in caplog.text
    report = json.loads((result.folder.parent / "nnsslPlans_tiny_left_out.json").read_text())
    assert report["orientation"]["counts"] == {"LPS": 2, "RAS": 1}
    assert result.left_out == {}


@pytest.mark.parametrize(("ending", "spacing"), [(".nrrd", 3.0), (".mha", 3.0), (".tif", 3.0), (".nii.gz", 3.0)])
def test_plan_and_preprocess__formats(folders: Folders, ending: str, spacing: float) -> None:
    write_ct_dataset(folders.raw, 1, "X", 2, file_ending=ending)
    (result,) = plan_and_preprocess([1], **TINY)
    assert result.cases == ["case_000", "case_001"]
    plans = json.loads((result.folder.parent / "nnsslPlans_tiny.json").read_text())
    assert plans["configurations"]["3d_fullres"]["spacing"] == [spacing, 1.5, 1.5]


def test_plan_and_preprocess__two_channel_anisotropic_mr(folders: Folders) -> None:
    write_mr_dataset(folders.raw, 1, "X", 2)
    (result,) = plan_and_preprocess([1], num_processes=1, planner="nnUNetPlannerResEncM")
    assert result.plans_name == "nnUNetResEncUNetMPlans"
    assert result.folder.name == "nnUNetPlans_3d_fullres"  # as nnU-Net shares it
    assert len(result.cases) == 2


def test_plan_and_preprocess__two_processes(folders: Folders) -> None:
    _bad_volumes(write_ct_dataset(folders.raw, 1, "X", 2))
    (result,) = plan_and_preprocess([1], preset="nnsslPlans_tiny", num_processes=2)
    assert len(result.cases) == 2
    assert len(result.left_out) == 7


def test_plan_and_preprocess__several_datasets_share_plans(folders: Folders) -> None:
    write_ct_dataset(folders.raw, 1, "X", 2)
    write_ct_dataset(folders.raw, 2, "Y", 2, spacing=(5.0, 1.0, 1.0), file_ending=".nrrd", labelled=True)
    write_mr_dataset(folders.raw, 3, "Z", 2)
    for _ in range(2):
        x, y = plan_and_preprocess([1, "Dataset002_Y", 1], **TINY)
    assert (x.plans_name, y.plans_name) == ("nnsslPlans_tiny", "nnsslPlans_tinyFrom1")
    assert y.cases == ["case_000", "case_001"]
    plans = [json.loads((r.folder.parent / f"{r.plans_name}.json").read_text()) for r in (x, y)]
    assert plans[1]["dataset_name"] == "Dataset002_Y"
    assert y.folder.name == "nnsslPlans_tinyFrom1_3d_fullres"
    for p in plans:
        p["configurations"]["3d_fullres"].pop("data_identifier")
    assert plans[0]["configurations"] == plans[1]["configurations"]
    assert (y.folder.parent / "dataset.json").is_file()
    with pytest.raises(UserError, match=r"Dataset003_Z has the channels T1, T2 and Dataset001_X has CT"):
        plan_and_preprocess([1, 3], **TINY)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"planner": "Nonsense"}, "no planner Nonsense"),
        ({"preset": "Nonsense"}, "no plans Nonsense"),
        ({"preset": "nnsslPlans_tiny", "configuration": "3d_lowres"}, r"no 3-D configuration 3d_lowres.*3d_fullres"),
        ({"configuration": "2d"}, r"no 3-D configuration 2d.*3d_fullres"),
        ({"num_processes": 0}, "-np 0"),
    ],
)
def test_plan_and_preprocess__mistakes(folders: Folders, options: dict[str, Any], message: str) -> None:
    write_ct_dataset(folders.raw, 1, "X", 2)
    with pytest.raises(UserError, match=message):
        plan_and_preprocess([1], **{"num_processes": 1, **options})
    assert not list(folders.preprocessed.glob("*/*.b2nd"))
    left = {file.name for file in folders.preprocessed.glob("*/*")}
    assert left <= {"dataset_fingerprint.json", "dataset.json"}  # whole, and good for the next attempt


@pytest.mark.parametrize("options", [{"planner": "Nonsense"}, {"preset": "Nonsense"}])
def test_plan_and_preprocess__mistyped_plans_are_refused_before_volumes_are_read(
    folders: Folders, options: dict[str, Any]
) -> None:  # fmt: skip
    write_ct_dataset(folders.raw, 1, "X", 2)
    with pytest.raises(UserError, match="Nonsense"):
        plan_and_preprocess([1], **options)
    assert not list(folders.preprocessed.glob("*/dataset_fingerprint.json"))


def test_plan_and_preprocess__full_disk(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    write_ct_dataset(folders.raw, 1, "X", 2)
    monkeypatch.setattr("nnssl.data.preprocessing.save_case", full)
    with pytest.raises(UserError, match="no space left"):
        plan_and_preprocess([1], **TINY)
