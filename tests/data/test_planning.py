from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from nnssl.core.errors import UserError
from nnssl.core.files import write_json
from nnssl.data.fingerprint import make_fingerprint, scan_dataset
from nnssl.data.planning import (
    PlanRequest,
    existing_plans,
    load_plans,
    make_plans,
    merged,
    planner_class,
    planner_classes,
    refuse_other_content,
    renamed,
    same_plans,
)
from nnssl.data.presets import presets
from nnssl.data.raw import RawDataset, read_raw_dataset
from nnssl.data.reader import find_reader
from tests.data.conftest import Folders
from tests.phantoms import write_ct_dataset, write_mr_dataset


def _ready(folders: Folders, name: str) -> tuple[RawDataset, Any, Path]:
    """A raw dataset with its fingerprint."""
    dataset, home = read_raw_dataset(folders.raw, name), folders.preprocessed / name
    reader = find_reader(dataset)
    write_json(home / "dataset_fingerprint.json", make_fingerprint(scan_dataset(dataset, reader, 1), dataset))
    return dataset, reader, home


def test_make_plans__equals_the_stock_planner(folders: Folders) -> None:
    write_ct_dataset(folders.raw, 1, "X", 3, labelled=True)
    dataset, reader, home = _ready(folders, "Dataset001_X")
    plans = make_plans(PlanRequest(), dataset, reader, home)
    assert load_plans(home, "nnUNetPlans") is None  # not saved yet
    planner_class("ExperimentPlanner")(1).plan_experiment()
    assert plans == load_plans(home, "nnUNetPlans")


@pytest.mark.parametrize("planner", ["nnUNetPlannerResEncL", "nnUNetPlannerResEncM"])
def test_make_plans__any_planner_without_labels(folders: Folders, planner: str) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    write_mr_dataset(folders.raw, 1, "X", 2)
    dataset, reader, home = _ready(folders, "Dataset001_X")
    del dataset.dataset_json["numTraining"]
    plans = make_plans(PlanRequest(planner=planner), dataset, reader, home)
    configuration = PlansManager(plans).get_configuration("3d_fullres")
    assert plans["plans_name"] == f"nnUNetResEncUNet{planner[-1]}Plans"
    assert configuration.spacing == [5.0, 1.0, 1.0]
    assert configuration.normalization_schemes == ["ZScoreNormalization"] * 2
    assert "ResidualEncoderUNet" in configuration.network_arch_class_name


def test_make_plans__no_numTraining_and_no_loader_processes(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_ct_dataset(folders.raw, 1, "X", 2)
    content = json.loads((folder / "dataset.json").read_text())
    del content["numTraining"]
    (folder / "dataset.json").write_text(json.dumps(content))
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")  # right for training, but planners hand it to torch
    plans = make_plans(PlanRequest(), *_ready(folders, "Dataset001_X"))
    assert plans["configurations"]["3d_fullres"]["batch_size"] == 2
    assert os.environ["nnUNet_n_proc_DA"] == "0"


def test_make_plans__planner_options(folders: Folders) -> None:
    write_ct_dataset(folders.raw, 1, "X", 2)
    request = PlanRequest(planner="nnUNetPlannerResEncL", target_spacing=(4.0, 2.0, 2.0), gpu_memory_target=10.0)
    plans = make_plans(request, *_ready(folders, "Dataset001_X"))
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["spacing"] == [4.0, 2.0, 2.0]
    # not the volumes of nnUNetPlans, whose spacing is another
    assert configuration["data_identifier"] == "nnUNetResEncUNetLPlans_3d_fullres"


def test_make_plans__by_the_name_of_a_planners_plans(folders: Folders) -> None:
    write_ct_dataset(folders.raw, 1, "X", 2)
    dataset, reader, home = _ready(folders, "Dataset001_X")
    plans = make_plans(PlanRequest(preset="nnUNetResEncUNetMPlans"), dataset, reader, home)
    assert plans["experiment_planner_used"] == "nnUNetPlannerResEncM"
    write_json(home / "myPlans.json", plans)
    with pytest.raises(UserError, match=r"no plans nonsense.*myPlans.*nnsslPlans_tiny.*nnUNetResEncUNetXLPlans"):
        make_plans(PlanRequest(preset="nonsense"), dataset, reader, home)
    with pytest.raises(UserError, match=r"no plans nnsslPlans_tinny of .*; did you mean nnsslPlans_tiny\?"):
        make_plans(PlanRequest(preset="nnsslPlans_tinny"), dataset, reader, home)
    assert existing_plans(home) == ["myPlans"]


def test_make_plans__preset_vox2vec(folders: Folders) -> None:
    write_ct_dataset(folders.raw, 1, "X", 2)
    dataset, reader, home = _ready(folders, "Dataset001_X")
    plans = make_plans(PlanRequest(preset="nnsslPlans_vox2vec"), dataset, reader, home)
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["spacing"] == [2.0, 1.0, 1.0]
    assert configuration["patch_size"] == [32, 128, 128]
    assert configuration["batch_size"] == 10
    assert configuration["median_image_size_in_voxels"] == [36.0, 60.0, 60.0]
    properties = plans["foreground_intensity_properties_per_channel"]["0"]
    assert (properties["mean"], properties["std"]) == (-1350.0, 2350.0)
    assert plans["image_reader_writer"] == "SimpleITKIO"
    assert plans["dataset_name"] == "Dataset001_X"
    assert _nulls(plans) == set()


def test_make_plans__preset_tiny_takes_the_rest_from_the_data(folders: Folders) -> None:
    write_mr_dataset(folders.raw, 1, "X", 2, shape=(36, 16, 40), spacing=(1.0, 5.0, 1.0))
    dataset, reader, home = _ready(folders, "Dataset001_X")
    plans = make_plans(PlanRequest(preset="nnsslPlans_tiny"), dataset, reader, home)
    stock = make_plans(PlanRequest(), dataset, reader, home)
    for key in ("transpose_forward", "transpose_backward", "foreground_intensity_properties_per_channel",
                "original_median_spacing_after_transp", "original_median_shape_after_transp"):  # fmt: skip
        assert plans[key] == stock[key], key
    assert plans["transpose_forward"] == [1, 0, 2]
    for key in ("spacing", "median_image_size_in_voxels", "normalization_schemes", "use_mask_for_norm"):
        assert plans["configurations"]["3d_fullres"][key] == stock["configurations"]["3d_fullres"][key], key
    assert _nulls(plans) == set()


def test_make_plans__preset_under_another_name(folders: Folders) -> None:
    write_ct_dataset(folders.raw, 1, "X", 2)
    plans = make_plans(PlanRequest(preset="nnsslPlans_tiny", plans_name="mine"), *_ready(folders, "Dataset001_X"))
    assert plans["plans_name"] == "mine"
    assert plans["configurations"]["3d_fullres"]["data_identifier"] == "mine_3d_fullres"


def test_make_plans__vox2vec_refuses_other_channels(folders: Folders) -> None:
    write_mr_dataset(folders.raw, 1, "X", 2)
    with pytest.raises(UserError, match=r"one CT channel.*T1, T2"):
        make_plans(PlanRequest(preset="nnsslPlans_vox2vec"), *_ready(folders, "Dataset001_X"))


@pytest.mark.parametrize("name", sorted(presets()))
def test_presets__are_complete_stock_plans(name: str) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = json.loads(presets()[name].read_text())
    assert plans["plans_name"] == name
    configuration = PlansManager(plans).get_configuration("3d_fullres")
    owner = configuration.data_identifier.removesuffix("_3d_fullres")  # of the preprocessed volumes: some share them
    same = PlansManager(json.loads(presets()[owner].read_text())).get_configuration("3d_fullres")
    assert (same.spacing, same.normalization_schemes) == (configuration.spacing, configuration.normalization_schemes)
    assert configuration.preprocessor_class is not None  # nnU-Net's own
    assert len(configuration.pool_op_kernel_sizes) >= 4
    assert configuration.resampling_fn_data is not None


def test_planner_class__unknown_lists_them() -> None:
    assert {"ExperimentPlanner", "nnUNetPlannerResEncXL", "nnUNetPlannerResEncL_torchres"} <= planner_classes().keys()
    with pytest.raises(UserError, match=r"no planner Nonsense.*ExperimentPlanner.*nnUNetPlannerResEncL"):
        planner_class("Nonsense")


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "nnsslPlans_tiny", "gpu_memory_target": 8.0},
        {"target_spacing": (1.0, 1.0)},
        {"target_spacing": (1.0, -1.0, 1.0)},
        {"gpu_memory_target": 0.0},
        {"plans_name": "a__b"},
        {"plans_name": "a/b"},
    ],
)
def test_PlanRequest__refuses(options: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        PlanRequest(**options)


PLANS: dict[str, Any] = {
    "plans_name": "nnUNetPlans",
    "dataset_name": "D",
    "transpose_forward": [0, 1, 2],
    "configurations": {
        "3d_fullres": {"data_identifier": "nnUNetPlans_3d_fullres", "batch_size": 2},
        "mine": {"inherits_from": "3d_fullres"},
    },
}


def test_renamed() -> None:
    plans = renamed(PLANS, "nnUNetPlansFrom500")
    assert plans["configurations"]["3d_fullres"]["data_identifier"] == "nnUNetPlansFrom500_3d_fullres"
    assert PLANS["plans_name"] == "nnUNetPlans"
    assert renamed({**PLANS, "plans_name": "ResEnc"}, "Other")["configurations"]["3d_fullres"]["data_identifier"] == (
        "Other_nnUNetPlans_3d_fullres"
    )


def test_same_plans__and_merged() -> None:
    other = json.loads(json.dumps(PLANS))
    other["configurations"]["3d_fullres"]["batch_size"] = 3
    assert same_plans(PLANS, PLANS, "3d_fullres")
    assert not same_plans(PLANS, other, "3d_fullres")
    assert same_plans(PLANS, other, "mine")
    del other["configurations"]["mine"]
    both = merged(other, PLANS)  # as nnU-Net's planners: custom configurations survive
    assert both["configurations"]["mine"] == {"inherits_from": "3d_fullres"}
    assert both["configurations"]["3d_fullres"]["batch_size"] == 3


def test_same_plans__and_merged_where_plans_name_a_pretraining() -> None:
    block: dict[str, Any] = {"checkpoint": "a.pth", "method": "vox2vec", "levels": "decoder"}
    mine = {**PLANS, "nnssl": block}
    assert same_plans(mine, {**mine, "nnssl": {**block, "num_epochs": 3}}, "3d_fullres")  # a quick run is the user's
    for other in (PLANS, {**mine, "nnssl": {**block, "checkpoint": "b.pth"}}):
        assert not same_plans(mine, other, "3d_fullres")
    one = {**mine, "configurations": {"3d_fullres": {}}}
    assert merged(one, mine) == one  # the block is about this configuration only


def test_load_plans__wrong_files(tmp_path: Path) -> None:
    assert load_plans(tmp_path, "none") is None
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match="--overwrite_plans"):
        load_plans(tmp_path, "broken")
    with pytest.raises(UserError, match="configurations: is missing"):
        load_plans(tmp_path, "other")
    with pytest.raises(UserError, match=r"dataset\.json"):
        load_plans(tmp_path, "dataset")


def test_find_reader__skips_what_cannot_be_read(folders: Folders) -> None:
    folder = write_ct_dataset(folders.raw, 1, "X", 2, file_ending=".tif")
    (folder / "imagesTr" / "case_000_0000.tif").write_bytes(b"garbage")
    assert find_reader(read_raw_dataset(folders.raw, "Dataset001_X")).__name__ == "Tiff3DIO"
    (folder / "imagesTr" / "case_001_0000.tif").write_bytes(b"garbage")
    with pytest.raises(UserError, match="none of the 2 images can be read"):
        find_reader(read_raw_dataset(folders.raw, "Dataset001_X"))


def test_find_reader__unknown_ending(folders: Folders) -> None:
    folder = write_ct_dataset(folders.raw, 1, "X", 1)
    content = {**json.loads((folder / "dataset.json").read_text()), "file_ending": ".dcm"}
    (folder / "dataset.json").write_text(json.dumps(content))
    (folder / "imagesTr" / "a_0000.dcm").write_text("")
    with pytest.raises(UserError, match=r"does not read files that end in \.dcm.*\.nrrd"):
        find_reader(read_raw_dataset(folders.raw, "Dataset001_X"))


def _nulls(value: Any, path: str = "") -> set[str]:
    """Paths of entries that are null, those apart which stock plans leave null too."""
    if isinstance(value, dict):
        return set().union(*(_nulls(v, f"{path}/{k}") for k, v in value.items()))
    stock = ("force_separate_z", "dropout_op", "dropout_op_kwargs")
    return {path} if value is None and not path.endswith(stock) else set()


def test_refuse_other_content__what_is_no_plans_is_not_replaced(tmp_path: Path) -> None:
    refuse_other_content(tmp_path, "new")
    (tmp_path / "cut.json").write_text('{"dataset_name": "D", "plans_name": "c')
    refuse_other_content(tmp_path, "cut")
    (tmp_path / "notes.json").write_text('{"to do": []}')
    with pytest.raises(UserError, match=r"notes\.json"):
        refuse_other_content(tmp_path, "notes")
