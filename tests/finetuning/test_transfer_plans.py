from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnssl.checkpoints.files import FINAL
from nnssl.checkpoints.pretrained import read_pretrained
from nnssl.core.errors import UserError
from nnssl.data import dataset_run, folder_volumes
from nnssl.data.guard import Images
from nnssl.data.plan_and_preprocess import plan_and_preprocess
from nnssl.data.report import majority_orientation
from nnssl.finetuning.start import Wanted, find_start
from nnssl.finetuning.transfer_plans import TransferredPlans, plans_of, transfer
from nnssl.methods.vox2vec.method import Vox2vec
from nnssl.pretraining.weights import write_nnunet_weights
from tests.data.conftest import Folders, folders
from tests.phantoms import write_ct_dataset, write_mr_dataset
from tests.pretrainings import CT_JSON, finish_pretraining, tiny_plans

__all__ = ["folders"]  # the fixture
SOURCE, TARGET = "Dataset500_Source", "Dataset017_Target"
MR_JSON = {"channel_names": {"0": "T1"}, "labels": {"background": 0}, "file_ending": ".nii.gz"}


@pytest.fixture(autouse=True)
def _no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines to type next are the same on all machines."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def _pretrained(folders: Folders, **options: Any) -> Path:
    return finish_pretraining(folders.results, SOURCE, options.pop("plans", tiny_plans()),
                              options.pop("dataset_json", CT_JSON), **options)  # fmt: skip


def _labelled(folders: Folders, cases: int = 2, **options: Any) -> Path:
    write_ct_dataset(folders.raw, 17, "Target", cases, labelled=True, **options)
    return folders.preprocessed / TARGET


def _transfer(method: str | None = None, **options: Any) -> TransferredPlans:
    return transfer(500, 17, method, num_processes=1, **options)


def _plans(home: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((home / f"{name}.json").read_text()))


def _set_channels(folders: Folders, *names: str) -> None:
    file = folders.raw / TARGET / "dataset.json"
    channels = {str(number): name for number, name in enumerate(names)}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"channel_names": channels}))


def _must_not_be_called(*_: Any, **__: Any) -> None:
    raise AssertionError("a volume is read again")


def _mr_plans(**changes: Any) -> dict[str, Any]:
    return tiny_plans(normalization_schemes=["ZScoreNormalization"], use_mask_for_norm=[True], **changes)


def test_transfer__stock_training_finds_everything(folders: Folders, caplog: pytest.LogCaptureFixture) -> None:
    """The source's folders are gone; plans, volumes, labels and weights are what stock nnU-Net wants."""
    from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
    from nnunetv2.run.run_training import get_trainer_from_args
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

    run, home = _pretrained(folders), _labelled(folders, spacing=(4.0, 2.0, 2.0))
    weights = write_nnunet_weights(run)
    with caplog.at_level(logging.INFO, logger="nnssl"):
        result = _transfer()
    name = "nnsslPlans_tinyFrom500_vox2vec"
    assert {file.name for file in home.iterdir()} == {
        "dataset.json", "dataset_fingerprint.json", "gt_segmentations", f"{name}.json", f"{name}_left_out.json",
        "nnsslPlans_tinyFrom500_3d_fullres", "nnsslPlans_tinyFrom500_3d_fullres_body",
    }  # fmt: skip
    plans, source = _plans(home, name), tiny_plans()
    assert plans["nnssl"] == {
        "checkpoint": f"{SOURCE}/nnssl_vox2vec__nnsslPlans_tiny__3d_fullres/fold_all/{FINAL}",
        "method": "vox2vec",
        "levels": "decoder",
    }
    assert (plans["plans_name"], plans["dataset_name"]) == (name, TARGET)
    mine, given = (p["configurations"]["3d_fullres"] for p in (plans, source))
    assert {key for key in given if mine[key] != given[key]} == {"data_identifier"}
    for key in ("transpose_forward", "foreground_intensity_properties_per_channel"):
        assert plans[key] == source[key], key

    image, seg, _, properties = nnUNetDatasetBlosc2(str(result.prepared.folder)).load_case("case_000")
    assert image.shape == (1, 32, 53, 53)  # 24x40x40 voxels of 4x2x2 mm at 3x1.5x1.5 mm
    assert set(np.unique(seg[:])) == {0, 1, 2} and set(properties["class_locations"]) == {1, 2}
    window = source["foreground_intensity_properties_per_channel"]["0"]
    assert image[:].min() == pytest.approx((window["percentile_00_5"] - window["mean"]) / window["std"], abs=0.01)
    assert {f.name for f in (home / "gt_segmentations").iterdir()} == {"case_000.nii.gz", "case_001.nii.gz"}

    train = (
        f"nnUNetv2_train 17 3d_fullres all -tr nnUNetTrainer_Vox2vecProbe -p {name} -device cpu"  # 2 cases: no 5 folds
    )
    stock = f"nnUNetv2_train 17 3d_fullres all -p {name} -pretrained_weights {weights} -device cpu"
    assert (result.command, result.stock_command) == (train, stock)
    without = ("nnUNetv2_plan_and_preprocess -d 17 -c 3d_fullres", train.replace(f"-p {name} ", ""))
    assert result.next == (train, stock, *without) and all(line in caplog.text for line in result.next)
    assert "warning" not in {record.levelname.lower() for record in caplog.records}

    trainer = get_trainer_from_args("17", "3d_fullres", "all", "nnUNetTrainer", name, device=torch.device("cpu"))
    trainer.initialize()
    load_pretrained_weights(trainer.network, str(weights))
    state = trainer.network.state_dict()
    backbone = read_pretrained(run / FINAL).backbone
    assert all(torch.equal(v, backbone[f"network.{k}"]) for k, v in state.items() if ".seg_layers." not in k)


def test_transfer__the_second_method_shares_the_volumes(
    folders: Folders, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pretrained(folders, orientation="RAS")
    home = _labelled(folders, cases=5)
    first = _transfer("vox2vec")
    said = "(RAS): most volumes of Dataset017_Target (LPS)"
    assert said in caplog.text and "DICOMOrient(image, 'RAS')" in caplog.text
    monkeypatch.setattr(folder_volumes, "prepare_case", _must_not_be_called)
    monkeypatch.setattr(dataset_run, "scan_dataset", _must_not_be_called)
    caplog.clear()
    second = _transfer("random")
    assert said in caplog.text  # known from the report of the first
    assert second.prepared.cases == first.prepared.cases and second.prepared.folder == first.prepared.folder
    plans = [_plans(home, f"nnsslPlans_tinyFrom500_{method}") for method in ("vox2vec", "random")]
    assert plans[1]["nnssl"] == {"checkpoint": "random", "method": "vox2vec", "levels": "decoder"}
    for p in plans:
        del p["nnssl"], p["plans_name"]
    assert plans[0] == plans[1]
    assert first.command.startswith("nnUNetv2_train 17 3d_fullres 0 -tr nnUNetTrainer_Vox2vecProbe -p ")
    train = "nnUNetv2_train 17 3d_fullres 0 -tr nnUNetTrainer_SSLProbe -p nnsslPlans_tinyFrom500_random -device cpu"
    assert second.next == (second.command,) == (train,)
    assert first.stock_command is None  # this run wrote no nnunet_weights.pth
    assert second.stock_command is None

    # The same again changes nothing, also when the raw images are gone by then.
    before = {f: f.read_bytes() for f in home.rglob("*") if f.is_file()}
    assert _transfer("vox2vec") == first
    shutil.rmtree(folders.raw / TARGET)
    assert _transfer("vox2vec").prepared.cases == first.prepared.cases
    assert {f: f.read_bytes() for f in home.rglob("*") if f.is_file()} == before


def test_transfer__differing_plans_need_a_flag(folders: Folders) -> None:
    run, home = _pretrained(folders), _labelled(folders)
    file = home / "nnsslPlans_tinyFrom500_vox2vec.json"
    first = _transfer()
    quick = json.loads(file.read_text())
    quick["nnssl"]["num_epochs"] = 3  # a quick run is the user's own wish
    file.write_text(json.dumps(quick))
    _transfer()
    assert json.loads(file.read_text()) == quick

    run.rename(run.with_name("fold_0"))  # another checkpoint, the same network
    with pytest.raises(UserError, match=r"differ from those asked for.*-overwrite_plans_name.*--overwrite_plans"):
        _transfer()
    own = _transfer(overwrite_plans_name="mine")
    assert (own.prepared.plans_name, own.prepared.folder.name) == ("mine", "mine_3d_fullres")
    volume = first.prepared.folder / "case_000.b2nd"
    written = volume.stat().st_mtime_ns
    _transfer(overwrite_plans=True)
    assert "fold_0" in json.loads(file.read_text())["nnssl"]["checkpoint"]
    assert volume.stat().st_mtime_ns == written  # the volumes still fit

    shutil.rmtree(run.parent)
    _pretrained(folders, plans=tiny_plans(batch_size=2) | {"transpose_forward": [1, 0, 2]})
    with pytest.raises(UserError, match=r"--overwrite_plans"):
        _transfer()
    _transfer(overwrite_plans=True)
    assert volume.stat().st_mtime_ns != written


def test_transfer__volumes_of_pretraining_together_are_used(folders: Folders) -> None:
    """A dataset that took part in the pretraining, with its labels, has these volumes already."""
    write_ct_dataset(folders.raw, 500, "Source", 2)
    home = _labelled(folders)
    plan_and_preprocess([500, 17], preset="nnsslPlans_tiny", num_processes=1)
    volume = home / "nnsslPlans_tinyFrom500_3d_fullres" / "case_000.b2nd"
    written = volume.stat().st_mtime_ns
    plans = json.loads((folders.preprocessed / SOURCE / "nnsslPlans_tiny.json").read_text())
    _pretrained(folders, plans=plans)
    assert (home / "dataset_fingerprint.json").exists()  # nnU-Net's trainer copies it
    result = _transfer()
    assert result.prepared.folder == volume.parent and volume.stat().st_mtime_ns == written


def test_transfer__two_channels_share_one(folders: Folders) -> None:
    _pretrained(folders, plans=_mr_plans(spacing=[5.0, 2.0, 2.0]), dataset_json=MR_JSON)
    write_mr_dataset(folders.raw, 17, "Target", 2, labelled=True)
    write_nnunet_weights(next(folders.results.glob("*/*/*")))
    result = _transfer()
    plans = _plans(folders.preprocessed / TARGET, "nnsslPlans_tinyFrom500_vox2vec")
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["normalization_schemes"] == ["ZScoreNormalization"] * 2
    assert configuration["use_mask_for_norm"] == [True, True]
    properties = plans["foreground_intensity_properties_per_channel"]
    assert properties["0"] == properties["1"] and len(properties) == 2
    assert len(result.prepared.cases) == 2
    assert result.stock_command is None  # stock loading refuses another first convolution


def test_transfer__channels_of_another_kind_are_refused(folders: Folders) -> None:
    write_mr_dataset(folders.raw, 17, "Target", 2, labelled=True)
    _pretrained(folders)
    with pytest.raises(UserError, match=r"MR \(T1\) in Dataset017_Target, CT in .*--allow_other_intensities"):
        _transfer()
    _set_channels(folders, "image", "image")  # nnU-Net would normalise them as no CT
    with pytest.raises(UserError, match=r"ZScoreNormalization for image.*CTNormalization for CT"):
        _transfer()
    shutil.rmtree(folders.results / SOURCE)
    three = {**MR_JSON, "channel_names": {"0": "T1", "1": "T2", "2": "FLAIR"}}
    plans = _mr_plans()
    for key in ("normalization_schemes", "use_mask_for_norm"):
        plans["configurations"]["3d_fullres"][key] *= 3
    window = plans["foreground_intensity_properties_per_channel"]["0"]
    plans["foreground_intensity_properties_per_channel"] = {str(c): window for c in range(3)}
    _pretrained(folders, plans=plans, dataset_json=three)
    _set_channels(folders, "T1", "T2")
    with pytest.raises(UserError, match=r"3 channels .*Dataset017_Target has 2"):
        _transfer()
    assert not list(folders.preprocessed.glob("*"))


def test_transfer__another_modality_may_be_allowed(folders: Folders, caplog: pytest.LogCaptureFixture) -> None:
    """Weights of MR on CT: the plans say that it is meant, so that the trainers let it through."""
    run = _pretrained(folders, plans=_mr_plans(), dataset_json=MR_JSON)
    home = _labelled(folders)
    with pytest.raises(UserError, match="--allow_other_intensities"):
        _transfer()
    assert not home.exists()
    result = _transfer(allow_other_intensities=True)
    assert "CT in Dataset017_Target, MR (T1) in " in caplog.text and "lets it pass" in caplog.text
    plans = _plans(home, result.prepared.plans_name)
    assert plans["nnssl"]["allow_other_intensities"] is True
    wanted = Wanted("nnUNetTrainer_Vox2vecProbe", "vox2vec", "linear", plans, "3d_fullres", Images("", ["CT"]))
    start = find_start(wanted, False, folders.results)
    assert start.source is not None and start.source.path == run / FINAL
    assert [w for w in start.warnings if "lets it pass" in w] and start.block["allow_other_intensities"] is True
    del plans["nnssl"]["allow_other_intensities"]
    with pytest.raises(UserError, match=r"CT in Dataset017_Target, MR.*nnssl_transfer --allow_other_intensities"):
        find_start(wanted, False, folders.results)


def test_transfer__images_of_the_same_kind_need_no_permission(folders: Folders) -> None:
    _pretrained(folders)
    home = _labelled(folders)
    result = _transfer(allow_other_intensities=True)
    assert "allow_other_intensities" not in _plans(home, result.prepared.plans_name)["nnssl"]
    assert _transfer() == result


def test_transfer__the_target_is_turned_to_RAS_as_the_source_was(
    folders: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    _pretrained(folders, plans=tiny_plans() | {"image_reader_writer": "NibabelIOWithReorient"}, orientation="RAS")
    home = _labelled(folders)  # LPS
    result = _transfer()
    assert _plans(home, result.prepared.plans_name)["image_reader_writer"] == "NibabelIOWithReorient"
    assert json.loads((home / "dataset.json").read_text())["overwrite_image_reader_writer"] == "NibabelIOWithReorient"
    assert majority_orientation(home, result.prepared.plans_name) == "RAS" and "oriented" not in caplog.text
    shutil.rmtree(home)
    shutil.rmtree(folders.raw)
    folders.raw.mkdir()
    _labelled(folders, file_ending=".nrrd")  # which that reader does not know
    result = _transfer()
    assert _plans(home, result.prepared.plans_name)["image_reader_writer"] == "SimpleITKIO"
    assert "(RAS): most volumes of Dataset017_Target (LPS)" in caplog.text


def test_transfer__a_target_without_labels_is_refused(folders: Folders) -> None:
    _pretrained(folders)
    write_ct_dataset(folders.raw, 17, "Target", 2)
    with pytest.raises(UserError, match=r"no labels.*labelsTr"):
        _transfer()
    content = json.loads((folders.raw / TARGET / "dataset.json").read_text())
    content["labels"]["liver"] = 1  # named, but nobody has drawn it
    (folders.raw / TARGET / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"no labels.*labelsTr"):
        _transfer()
    with pytest.raises(UserError, match="-np 0"):
        transfer(500, 17, num_processes=0)


def test_transfer__coarse_targets_are_warned_of(folders: Folders, caplog: pytest.LogCaptureFixture) -> None:
    _pretrained(folders)
    _labelled(folders, shape=(10, 40, 40), spacing=(7.0, 1.5, 1.5))
    _transfer()
    assert "most volumes of Dataset017_Target (7 x 1.5 x 1.5 mm)" in caplog.text and "3 x 1.5 x 1.5 mm" in caplog.text


def test_plans_of__one_configuration_without_its_stages(folders: Folders) -> None:
    plans = tiny_plans()
    configurations = plans["configurations"]
    configurations["3d_fullres"]["next_stage"] = "cascade"
    configurations["small"] = {"inherits_from": "3d_fullres", "previous_stage": "x", "batch_size": 3}
    configurations["2d"] = {"inherits_from": "3d_fullres", "patch_size": [16, 16], "spacing": [1.5, 1.5]}
    source = read_pretrained(_pretrained(folders, plans=plans, configuration="small") / FINAL)
    made = plans_of(source, "new", "folder", {"checkpoint": "random"}, 1)
    mine = made["configurations"].pop("small")
    assert not made["configurations"] and made["nnssl"] == {"checkpoint": "random"} and made["plans_name"] == "new"
    expected = {**tiny_plans()["configurations"]["3d_fullres"], "batch_size": 3, "data_identifier": "folder"}
    assert mine == expected
    assert "nnssl" not in source.plans and len(source.plans["configurations"]) == 3


def test_transfer__encoder_methods_and_other_configurations(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Vox2vec, "levels", "encoder")
    plans = tiny_plans()
    plans["configurations"]["small"] = {"inherits_from": "3d_fullres", "batch_size": 3}
    _pretrained(folders, plans=plans, configuration="small")
    home = _labelled(folders)
    result = _transfer("random", configuration="small")
    assert _plans(home, result.prepared.plans_name)["nnssl"]["levels"] == "encoder"
    assert result.prepared.folder.name == "nnsslPlans_tinyFrom500_small"
    assert "nnUNetv2_train 17 small all -tr nnUNetTrainer_SSLProbe" in result.command


def test_transfer__numbers_of_four_digits(folders: Folders) -> None:
    """Plans are named by the whole number, and stock nnU-Net gets the name, as it cuts numbers."""
    plans = tiny_plans() | {"dataset_name": "Dataset1500_Source"}
    finish_pretraining(folders.results, "Dataset1500_Source", plans, CT_JSON)
    write_ct_dataset(folders.raw, 1017, "Target", 2, labelled=True)
    result = transfer(1500, 1017, num_processes=1)
    assert result.prepared.plans_name == "nnsslPlans_tinyFrom1500_vox2vec"
    assert result.command.startswith("nnUNetv2_train Dataset1017_Target 3d_fullres ")
    assert "nnssl_plan_and_preprocess -d Dataset1017_Target -c 3d_fullres" in result.next
