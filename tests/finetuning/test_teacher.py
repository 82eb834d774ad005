from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nnssl.core.errors import UserError
from nnssl.deployment.session import Description
from nnssl.finetuning.teacher import Teacher, TeacherPlace, find_teacher, refuse_other_teacher
from tests.deployment.models import write_model
from tests.finetuning.flare import finish, make_trainer
from tests.finetuning.half_annotated import SHAPE
from tests.finetuning.plans import small_plans
from tests.foreign_plans import SAID, hide_command_in, with_command

DATASET_JSON = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "bone": 1}, "file_ending": ".nii.gz"}


def _finished(results: Path, name: str, fold: int | str = 0) -> Path:
    folder = results / "Dataset017_Target" / name
    (folder / f"fold_{fold}").mkdir(parents=True)
    (folder / f"fold_{fold}" / "checkpoint_final.pth").touch()
    return folder


def _find(results: Path, trainer: str | None = "nnUNetTrainer_LAPN", fold: int | str = 0, **block: Any) -> Any:
    student = results / "Dataset017_Target" / "nnUNetTrainer_Distill__p__3d_fullres"
    return find_teacher(block, results, student, fold, trainer)


def test_find_teacher__of_the_same_dataset_configuration_and_fold(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no finished nnUNetTrainer_LAPN of Dataset017_Target.*-tr nnUNetTrainer_LAPN"):
        _find(tmp_path)
    _finished(tmp_path, "nnUNetTrainer_LAPN__p__3d_lowres")
    _finished(tmp_path, "nnUNetTrainer_PartialLabels__p__3d_fullres")
    with pytest.raises(UserError, match="no finished"):
        _find(tmp_path)
    other = _finished(tmp_path, "nnUNetTrainer_LAPN__q__3d_fullres")
    assert _find(tmp_path).named == other
    with pytest.raises(UserError, match="no finished"):
        _find(tmp_path, fold=1)
    own = _finished(tmp_path, "nnUNetTrainer_LAPN__p__3d_fullres")
    found = _find(tmp_path)  # the plans of the student are preferred
    assert (found.named, found.folder, found.fold) == (own, own, "0")
    third = _finished(tmp_path, "nnUNetTrainer_LAPN__r__3d_fullres", fold="all")
    assert _find(tmp_path, fold=3).checkpoint == third / "fold_all" / "checkpoint_final.pth"


def test_find_teacher__of_any_trainer_if_there_is_only_one(tmp_path: Path) -> None:
    _finished(tmp_path, "nnUNetTrainer_LAPNDistill__p__3d_fullres")
    _finished(tmp_path, "nnUNetTrainer_Distill__p__3d_fullres")
    _finished(tmp_path, "nnssl_lapn__p__3d_fullres", fold="all")
    with pytest.raises(UserError, match="no finished model"):
        _find(tmp_path, trainer=None)
    only = _finished(tmp_path, "nnUNetTrainer__q__3d_fullres")
    assert _find(tmp_path, trainer=None).named == only
    second = _finished(tmp_path, "nnUNetTrainer_LAPN__q__3d_fullres")
    with pytest.raises(UserError, match="there are 2 models that could be the teacher") as refusal:
        _find(tmp_path, trainer=None)
    assert all(f"\n  export nnssl_teacher={folder}" in str(refusal.value) for folder in (only, second))


def test_find_teacher__that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = _finished(tmp_path, "a__p__2d", fold=0), _finished(tmp_path, "b__p__3d_fullres", fold=2)
    assert _find(tmp_path, teacher="Dataset017_Target/a__p__2d").folder == model
    monkeypatch.setenv("nnssl_teacher", str(other / "fold_2"))
    found = _find(tmp_path)
    assert (found.named, found.folder, found.fold) == (other / "fold_2", other, "2")
    monkeypatch.setenv("nnssl_teacher", str(other / "fold_2" / "checkpoint_final.pth"))
    assert _find(tmp_path).folder == other
    with pytest.raises(UserError, match=r"plans name the teacher .* and nnssl_teacher names"):
        _find(tmp_path, teacher="Dataset017_Target/a__p__2d")
    monkeypatch.setenv("nnssl_teacher", str(other))
    with pytest.raises(UserError, match=r"nnssl_teacher names the teacher .*b__p__3d_fullres, which has no fold_0"):
        _find(tmp_path)


def _described(dataset_json: dict[str, Any] | None = None, **changes: Any) -> Description:
    plans = small_plans(**changes)
    return Description(plans, dataset_json or DATASET_JSON, "3d_fullres", 0, "T", None, "0")


def test_refuse_other_teacher__names_every_difference() -> None:
    own = small_plans(patch_size=[16, 16, 16])  # may differ
    refuse_other_teacher(_described(), own, "3d_fullres", DATASET_JSON)
    labels = DATASET_JSON | {"labels": {"background": 0, "liver": 1}}
    with pytest.raises(UserError, match=r"labels: \{'background': 0, 'liver': 1\} of the teacher, \{.*'bone': 1\} h"):
        refuse_other_teacher(_described(labels), own, "3d_fullres", DATASET_JSON)
    channels = DATASET_JSON | {"channel_names": {"0": "T1"}}
    theirs = _described(channels, spacing=[3.0, 1.0, 1.0], scheme="ZScoreNormalization", name="theirPlans")
    with pytest.raises(UserError) as refusal:
        refuse_other_teacher(theirs, own, "3d_fullres", DATASET_JSON)
    text = str(refusal.value)
    for difference in ("channels: ['T1'] of the teacher, ['CT'] here",
                       "spacing in mm: [3.0, 1.0, 1.0] of the teacher, [2.0, 1.0, 1.0] here",
                       "normalisation: [['ZScoreNormalization', False]] of the teacher", "-p theirPlans"):  # fmt: skip
        assert difference in text
    assert "labels:" not in text and "order of the axes" not in text


def test_refuse_other_teacher__intensities_axes_regions_and_stages() -> None:
    own = small_plans()
    window, turned, second = (json.loads(json.dumps(own)) for _ in range(3))
    window["foreground_intensity_properties_per_channel"]["0"]["std"] = 7.0
    turned["transpose_forward"] = [1, 0, 2]
    second["configurations"]["3d_fullres"]["previous_stage"] = "3d_lowres"
    for plans, sentence in ((window, "CT window: "), (turned, "order of the axes: "), (second, "3d_lowres; take a")):
        with pytest.raises(UserError, match=sentence):
            refuse_other_teacher(replace(_described(), plans=plans), own, "3d_fullres", DATASET_JSON)
    regions = DATASET_JSON | {"regions_class_order": [1]}
    with pytest.raises(UserError, match=r"labels: .*regions_class_order"):
        refuse_other_teacher(_described(regions), own, "3d_fullres", DATASET_JSON)
    nearly = _described(spacing=[2.0, 1.0, 1.00001])
    refuse_other_teacher(nearly, own, "3d_fullres", DATASET_JSON)


def test_teacher__is_the_trained_network_for_patches_of_any_size(flare: Path) -> None:
    trainer = make_trainer(flare, "LAPN")
    model = finish(trainer)
    place = find_teacher({}, flare / "results", model.with_name("x__nnsslPlans_tiny__3d_fullres"), 0, None)
    teacher = Teacher(place)
    assert teacher.description.trainer_name == "nnUNetTrainer_LAPN" and teacher.description.mirroring_axes is None
    assert not any(p.requires_grad for p in teacher.network.parameters()) and not teacher.network.training
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    x = torch.randn(2, 1, *SHAPE)
    logits = teacher(x)
    assert torch.equal(logits, trainer.network(x)) and not logits.requires_grad
    odd = x[..., :11, :22, :21]
    padded = torch.nn.functional.pad(odd, (0, 3, 0, 2, 0, 1))
    assert torch.equal(teacher(odd), trainer.network(padded)[..., :11, :22, :21])


def test_teacher__runs_nothing_of_other_peoples_making(tmp_path: Path) -> None:
    model, marker = write_model(tmp_path / "model"), tmp_path / "called"
    place = TeacherPlace(model, model / "fold_0" / "checkpoint_final.pth")
    plans = json.loads((model / "plans.json").read_text())
    (model / "plans.json").write_text(json.dumps(with_command(plans, marker)))
    with pytest.raises(UserError, match=SAID):
        Teacher(place)
    (model / "plans.json").write_text(json.dumps(plans))
    assert not Teacher(place).network.training
    hide_command_in(place.checkpoint, marker)
    with pytest.raises(UserError, match=r"checkpoint_final.pth is not opened"):
        Teacher(place)
    assert not marker.exists()
