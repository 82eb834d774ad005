from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nnssl.core.errors import UserError
from nnssl.data import folder_volumes
from nnssl.data.plan_and_preprocess import plan_and_preprocess
from tests.data.conftest import Folders
from tests.phantoms import write_ct_dataset

TINY: dict[str, Any] = {"preset": "nnsslPlans_tiny", "num_processes": 1}


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def _stock_preprocessing(name: str, home: Path) -> None:
    """What nnUNetv2_plan_and_preprocess leaves, by nnU-Net's own functions in this process."""
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    from nnssl.data.fingerprint import make_fingerprint, scan_dataset
    from nnssl.data.raw import read_raw_dataset

    dataset = read_raw_dataset(home.parents[1] / "raw", name)
    home.mkdir()
    fingerprint = make_fingerprint(scan_dataset(dataset, SimpleITKIO, 1), dataset)
    (home / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
    plans = PlansManager(ExperimentPlanner(name).plan_experiment())
    configuration = plans.get_configuration("3d_fullres")
    (home / configuration.data_identifier).mkdir()
    for case in dataset.cases.values():
        DefaultPreprocessor(verbose=False).run_case_save(
            str(home / configuration.data_identifier / case.name), list(case.images), str(case.label), plans,
            configuration, dataset.dataset_json,
        )  # fmt: skip
    (home / "gt_segmentations").mkdir()


def test_DatasetRun__what_nnunet_made_stays_as_it_is(folders: Folders) -> None:
    raw = write_ct_dataset(folders.raw, 1, "X", 3, labelled=True)
    home = folders.preprocessed / "Dataset001_X"
    _stock_preprocessing("Dataset001_X", home)
    before = _bytes(home)
    (result,) = plan_and_preprocess([1], num_processes=1)
    after = _bytes(home)
    assert {name: after[name] for name in before} == before
    new = sorted(after.keys() - before.keys())
    bodies = [f"nnUNetPlans_3d_fullres_body/case_00{i}.b2nd" for i in range(3)]
    labels = [f"gt_segmentations/case_00{i}.nii.gz" for i in range(3)]
    notes = [f"nnUNetPlans_3d_fullres_body/{name}" for name in ("records.jsonl", "settings.json")]
    assert new == sorted([*bodies, *labels, *notes, "nnUNetPlans_left_out.json"])
    assert result.cases == ["case_000", "case_001", "case_002"]

    # The raw images may be gone then.
    for file in home.glob("*_body/*"):
        file.unlink()
    raw.rename(folders.raw.parent / "elsewhere")
    (result,) = plan_and_preprocess([1], num_processes=1)
    assert result.cases == ["case_000", "case_001", "case_002"]
    with pytest.raises(UserError, match="does not exist"):
        plan_and_preprocess([1], num_processes=1, planner="nnUNetPlannerResEncM")


def test_DatasetRun__skips_what_is_done(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    write_ct_dataset(folders.raw, 1, "X", 3)
    (result,) = plan_and_preprocess([1], **TINY)
    (result.folder / "case_001.pkl").unlink()  # as after a crash of nnU-Net's own preprocessing
    others = {name: content for name, content in _bytes(result.folder).items() if "case_001" not in name}
    stock, seen = folder_volumes.prepare_case, []

    def watch(case: Any, job: Any) -> Any:
        seen.append(case.name)
        return stock(case, job)

    monkeypatch.setattr(folder_volumes, "prepare_case", watch)
    (again,) = plan_and_preprocess([1], **TINY)
    assert seen == ["case_001"]
    assert again.cases == result.cases
    after = _bytes(result.folder)
    assert {name: after[name] for name in others} == others


def test_DatasetRun__parts(folders: Folders) -> None:
    bad = write_ct_dataset(folders.raw, 1, "X", 5) / "imagesTr" / "case_003_0000.nii.gz"
    bad.write_bytes(b"")
    with pytest.raises(UserError, match=r"nnssl_plan_and_preprocess -d 1 --no_pp"):
        plan_and_preprocess([1], **TINY, num_parts=2, part_id=0)
    (planned,) = plan_and_preprocess([1], **TINY, preprocess=False)
    assert planned.cases == []
    assert not planned.folder.exists()
    assert planned.left_out.keys() == {"case_003"}
    (first,) = plan_and_preprocess([1], **TINY, num_parts=2, part_id=0)
    (second,) = plan_and_preprocess([1], **TINY, num_parts=2, part_id=1)
    assert first.cases == ["case_000", "case_002", "case_004"]
    assert (second.cases, second.left_out.keys()) == (["case_001"], {"case_003"})
    reports = [f"nnsslPlans_tiny_left_out_part_{k}_of_2.json" for k in range(2)]
    left_out = [json.loads((first.folder.parent / report).read_text())["left_out"] for report in reports]
    assert left_out[0] == {}
    assert left_out[1].keys() == {"case_003"}
    with pytest.raises(UserError, match="not one of the parts 0 to 1"):
        plan_and_preprocess([1], **TINY, num_parts=2, part_id=2)


def test_DatasetRun__differing_request_needs_a_flag(folders: Folders) -> None:
    write_ct_dataset(folders.raw, 1, "X", 2)
    asked: dict[str, Any] = {"num_processes": 1, "planner": "ExperimentPlanner"}
    (first,) = plan_and_preprocess([1], **asked)
    plan_and_preprocess([1], **asked)  # the same request again is no difference
    before = _bytes(first.folder)
    with pytest.raises(UserError, match=r"-overwrite_plans_name OTHER_NAME.*--overwrite_plans"):
        plan_and_preprocess([1], **asked, overwrite_target_spacing=(6.0, 3.0, 3.0))
    assert _bytes(first.folder) == before
    (other,) = plan_and_preprocess([1], **asked, overwrite_target_spacing=(6.0, 3.0, 3.0), overwrite_plans_name="six")
    assert (other.plans_name, other.folder.name) == ("six", "six_3d_fullres")
    (replaced,) = plan_and_preprocess([1], **asked, overwrite_target_spacing=(6.0, 3.0, 3.0), overwrite_plans=True)
    assert replaced.plans_name == "nnUNetPlans"
    assert len(replaced.cases) == 2
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    assert nnUNetDatasetBlosc2(str(replaced.folder)).load_case("case_000")[0].shape == (1, 12, 20, 20)


def test_DatasetRun__volumes_of_other_plans_are_not_mixed(folders: Folders) -> None:
    write_ct_dataset(folders.raw, 1, "X", 2)
    (result,) = plan_and_preprocess([1], **TINY)
    file = result.folder.parent / "nnsslPlans_tiny.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["3d_fullres"]["spacing"] = [1.0, 1.0, 1.0]
    file.write_text(json.dumps(plans))
    with pytest.raises(UserError, match="made with other plans"):
        plan_and_preprocess([1], **TINY)
