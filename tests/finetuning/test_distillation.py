"""nnUNetTrainer_Distill and nnUNetTrainer_LAPNDistill inside nnU-Net's own classes, with tests/finetuning/flare.py."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from nnssl.core.errors import UserError
from nnssl.finetuning.distillation_loss import distillation_kl
from nnssl.finetuning.unlabelled import is_unlabelled
from tests.finetuning.flare import CPU, SOURCE, batch_of, finish, log_of, make_trainer, read_plans, same, state_of
from tests.finetuning.half_annotated import NAME, SHAPE, without_raw

STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2]]


def _student_plans(root: Path) -> dict[str, Any]:
    """Those of the teacher with a small network of the paper's kind."""
    plans = read_plans(root)
    plans["plans_name"] = "nnsslPlans_student"
    plans["configurations"]["3d_fullres"]["architecture"] = {
        "network_class_name": "nnssl.networks.monai_unet.MonaiUNet",
        "arch_kwargs": {"channels": [4, 6, 8], "strides": STRIDES},
        "_kw_requires_import": [],
    }
    return plans


@pytest.fixture
def taught(flare: Path) -> Path:
    """The folders with a teacher that has random weights."""
    finish(make_trainer(flare, "LAPN"))
    return flare


def _teacher(root: Path, name: str = "LAPN") -> Path:
    return root / "results" / NAME / f"nnUNetTrainer_{name}__nnsslPlans_tiny__3d_fullres"


def test_lapn_distill__one_step(taught: Path) -> None:
    trainer = make_trainer(taught, "LAPNDistill", plans=_student_plans(taught))
    trainer.on_train_start()
    assert not trainer.enable_deep_supervision and trainer.inference_allowed_mirroring_axes is None
    assert (
        trainer.plans_manager.plans["nnssl"]["teacher"] == _teacher(taught).relative_to(taught / "results").as_posix()
    )
    before, student = state_of(trainer.teacher.network), state_of(trainer.network)
    trainer.on_train_epoch_start()
    batch = batch_of(trainer, ["case_000", "case_001"])
    with torch.no_grad():
        trainer.loss.teacher = trainer.teacher(batch["data"])
        trainer.loss.annotated = trainer.annotated(batch["keys"])
        logits = trainer.network(batch["data"])
        kl = distillation_kl(logits, trainer.loss.teacher)
        labelled = trainer.loss.loss(logits, batch["target"], trainer.loss.annotated)
        whole = trainer.loss(logits, batch["target"])
    assert whole.item() == pytest.approx(0.5 * kl.item() + 0.5 * labelled.item(), rel=1e-5)
    assert trainer.train_step(batch)["loss"] == pytest.approx(whole.item(), rel=1e-5)
    assert same(state_of(trainer.teacher.network), before) and not trainer.teacher.network.training
    assert all(p.grad is None for p in trainer.teacher.network.parameters())
    assert not same(state_of(trainer.network), student)
    inside = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert inside == {id(p) for p in trainer.network.parameters()}
    log = log_of(trainer)
    assert "Teacher: " in log and "Preprocessing 2 volumes of imagesUn into" in log
    assert "2 volumes without labels learn from the teacher alone: 25% of the patches" in log
    assert "Temperature: 1.000" in log and "WARNING" not in log


def test_distill__temperature_rises_to_4(taught: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnssl_num_epochs", "4")
    trainer = make_trainer(taught, "LAPNDistill")
    trainer.on_train_start()
    temperatures = []
    for epoch in range(4):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        temperatures.append(trainer.loss.temperature)
    assert temperatures == pytest.approx([1, 2, 3, 4])


@pytest.mark.parametrize("empty", ["imagesUn/un_1", "case_001"])
def test_unlabelled_batch__gives_the_kl_only(taught: Path, empty: str) -> None:
    trainer = make_trainer(taught, "LAPNDistill")
    trainer.on_train_start()
    trainer.annotations.listed["case_001"] = frozenset()
    trainer.on_train_epoch_start()
    trainer.loss.temperature = 3.0
    batch = batch_of(trainer, [empty, empty])
    batch["target"] = [torch.zeros_like(level) for level in batch["target"]]
    logits = trainer.network(batch["data"])[0]
    expected = 0.5 * 9 * distillation_kl(logits, trainer.teacher(batch["data"]), 3.0)
    parameters = list(trainer.network.parameters())
    gradients = torch.autograd.grad(expected, parameters, allow_unused=True)
    assert trainer.annotated([empty, "case_000"]).tolist() == [[True, False, False], [True, True, True]]
    assert trainer.train_step(batch)["loss"] == pytest.approx(expected.item(), rel=1e-5)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None and parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
        assert gradient is not None or parameter.grad is None or parameter.grad.abs().max() == 0
    validated = trainer.validation_step(batch)
    assert validated["loss"] > 0 and validated["tp_hard"].sum() == 0


def test_loader__mixes_unlabelled_volumes_in(taught: Path) -> None:
    plans = _student_plans(taught) | {"nnssl": {"unlabelled_share": 0.5}}
    trainer = make_trainer(taught, "LAPNDistill", plans=plans)
    trainer.on_train_start()
    training, _ = trainer.get_tr_and_val_datasets()
    assert pickle.loads(pickle.dumps(training)).identifiers == training.identifiers  # for workers that are spawned
    keys: list[str] = []
    for _ in range(20):
        batch = next(trainer.dataloader_train)
        for target, key in zip(batch["target"], batch["keys"], strict=True):
            assert not is_unlabelled(key) or target.abs().max() == 0
        assert batch["data"].shape == (2, 1, *SHAPE)
        keys += list(batch["keys"])
    assert 8 <= sum(map(is_unlabelled, keys)) <= 32
    assert not any(is_unlabelled(key) for _ in range(5) for key in next(trainer.dataloader_val)["keys"])
    with pytest.raises(UserError, match=r"unlabelled_share: .* below 1"):
        make_trainer(taught, "LAPNDistill", plans=plans | {"nnssl": {"unlabelled_share": 1}})


@pytest.mark.parametrize("name", ["LAPNDistill", "Distill"])
def test_distill__trains_predicts_and_continues(taught: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    plans = _student_plans(taught) if name == "LAPNDistill" else read_plans(taught)
    trainer = make_trainer(taught, name, plans=plans)
    trainer.run_training()
    model = Path(trainer.output_folder_base)
    saved = torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert saved["network_weights"].keys() == trainer.network.state_dict().keys()
    assert not any("pixels" in key for key in saved["network_weights"]) and "teacher" not in saved

    monkeypatch.setenv("nnssl_num_epochs", "3")
    finish(make_trainer(taught, "SSLEncodings"))  # a second possible teacher
    again = make_trainer(taught, name, plans=plans | {"nnssl": {}}, continued=True)
    again.load_checkpoint(str(model / "fold_0" / "checkpoint_final.pth"))
    again.run_training()
    assert again.current_epoch == 3 and f"Teacher: {_teacher(taught)}" in log_of(again)

    for gone in (_teacher(taught), taught / "results" / SOURCE):
        shutil.rmtree(gone)
    predictor = nnUNetPredictor(device=CPU, perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,))
    image = torch.randn(1, 1, *SHAPE)
    again.set_deep_supervision_enabled(False)
    with torch.no_grad():
        assert torch.equal(predictor.network.eval()(image), again.network.eval()(image))
    assert predictor.predict_sliding_window_return_logits(image[0]).shape == (3, *SHAPE)


def test_distill__follows_the_teachers_mirroring(taught: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform

    stock = make_trainer(taught, "PartialLabels")
    finish(stock)
    monkeypatch.setenv("nnssl_teacher", stock.output_folder_base)
    trainer = make_trainer(taught, "Distill")
    trainer.on_train_start()
    (mirror,) = [
        t for t in trainer.dataloader_train.data_loader.transforms.transforms if isinstance(t, MirrorTransform)
    ]
    assert tuple(mirror.allowed_axes) == trainer.inference_allowed_mirroring_axes == (0, 1, 2)


def test_distill__refuses_and_warns_of_teachers(taught: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_raw(taught)
    labels = {"background": 0, "first": 1, "second": 2}
    with pytest.raises(UserError, match=r"labels: \{.*'kidney': 2\} of the teacher, \{.*'second': 2\} here"):
        make_trainer(taught, "LAPNDistill", labels=labels, annotated_labels={}).on_train_start()
    coarser = read_plans(taught)
    coarser["configurations"]["3d_fullres"]["spacing"] = [2.0, 2.0, 2.0]
    with pytest.raises(UserError, match=r"spacing in mm: \[1.5, 1.5, 1.5\] of the teacher, \[2.0, 2.0, 2.0\] here"):
        make_trainer(taught, "LAPNDistill", plans=coarser).on_train_start()
    shutil.rmtree(_teacher(taught))
    with pytest.raises(UserError, match=r"no finished nnUNetTrainer_LAPN of Dataset017_Organs, 3d_fullres, fold 0"):
        make_trainer(taught, "LAPNDistill").on_train_start()

    other = finish(make_trainer(taught, "LAPN", fold=1))
    plans = read_plans(taught)
    plans["configurations"]["3d_fullres"]["patch_size"] = [12, 16, 16]
    monkeypatch.setenv("nnssl_teacher", str(other / "fold_1"))
    trainer = make_trainer(taught, "LAPNDistill", plans=plans)
    trainer.on_train_start()
    log = log_of(trainer)
    assert "WARNING: the teacher was trained on patches of [12, 24, 24] and sees patches of [12, 16, 16]" in log
    assert "WARNING: the teacher is of fold 1 and has seen validation cases of fold 0" in log


def test_distill__of_regions(flare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_raw(flare)
    labels = {"background": 0, "both": [1, 2], "kidney": 2}
    more: dict[str, Any] = {"labels": labels, "regions_class_order": [1, 2], "annotated_labels": {"case_001": ["both"]}}
    finish(make_trainer(flare, "PartialLabels", **more))
    trainer = make_trainer(flare, "Distill", **more)
    trainer.initialize()
    trainer._meet_teacher()
    batch = batch_of(trainer, ["case_001", "imagesUn/un_1"])
    batch["target"] = [torch.cat([level > 0, level == 2], 1) for level in batch["target"]]
    assert trainer.annotated(batch["keys"]).tolist() == [[True, False], [False, False]]
    assert trainer.loss.regions and math.isfinite(trainer.train_step(batch)["loss"])


def test_distill__refuses_2d_and_cascades(flare: Path) -> None:
    plans = read_plans(flare)
    plans["configurations"]["3d_fullres"]["previous_stage"] = "3d_lowres"
    plans["configurations"]["3d_lowres"] = json.loads(json.dumps(plans["configurations"]["3d_fullres"]))
    with pytest.raises(UserError, match="also reads the segmentation of 3d_lowres"):
        make_trainer(flare, "Distill", plans=plans)
    flat = read_plans(flare)
    flat["configurations"]["3d_fullres"]["patch_size"] = [16, 16]
    flat["configurations"]["3d_fullres"]["spacing"] = [1.5, 1.5]
    with pytest.raises(UserError, match="not three-dimensional"):
        make_trainer(flare, "Distill", plans=flat)


def test_lapn_scratch__the_students_recipe_and_no_teacher(flare: Path) -> None:
    alone, student = (make_trainer(flare, name, plans=_student_plans(flare)) for name in ("LAPNScratch", "LAPNDistill"))
    recipe = ("initial_lr", "weight_decay", "num_epochs", "num_iterations_per_epoch", "enable_deep_supervision")
    assert [getattr(alone, name) for name in recipe] == [getattr(student, name) for name in recipe]
    alone.on_train_start()
    before = state_of(alone.network)
    assert math.isfinite(alone.train_step(batch_of(alone, ["case_000", "case_001"]))["loss"])
    assert not same(state_of(alone.network), before) and "eacher" not in log_of(alone)
