from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nnssl.checkpoints.files import FINAL, LATEST, load_checkpoint
from nnssl.core.errors import UserError
from nnssl.core.signals import Interrupted
from nnssl.data import prepare_resized
from nnssl.data.volumes import BloscVolume
from nnssl.methods.base import Batch, StepOutput
from nnssl.methods.voco.method import VoCo
from nnssl.networks.swin import SwinPyramid
from nnssl.pretraining import pretrain
from nnssl.pretraining.folder import Stored
from nnssl.pretraining.loop import Pretraining
from nnssl.pretraining.metrics import read_rows
from nnssl.pretraining.optimisation import build_optimiser
from nnssl.pretraining.weights import load_weights
from tests.methods.voco_batches import small_fpn, voco_batch, voco_config
from tests.runs import CPU, make_setup, resumed, same_content


def _train(method: VoCo, batch: Batch, steps: int, rate: float = 3e-3) -> list[StepOutput]:
    optimiser = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], rate, amsgrad=True)
    outputs = []
    for step in range(steps):
        outputs.append(method(batch))
        optimiser.zero_grad()
        outputs[-1].loss.backward()
        optimiser.step()
        method.after_step(step)
    return outputs


@pytest.mark.parametrize(
    "options", [{}, {"reg_detach": False}, {"objective": "paper"}, {"batch_size": 1}], ids=lambda o: str(o)
)
def test_step__overfits_one_batch_and_the_positive_term_goes_down(tmp_path: Path, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = voco_config(crops=4, projection_dim=32, **options)
    method = VoCo(small_fpn(), config)
    batch = method.augment(voco_batch(tmp_path, config))
    outputs = _train(method, batch, 40)
    assert outputs[0].embeddings.shape == ((config.batch_size or 0) * 8, 32)
    assert outputs[0].terms.keys() == {"positive", "negative", "regulariser", "dead_pairs"}
    assert 0 <= outputs[0].terms["dead_pairs"] <= 1
    assert outputs[-1].loss < 0.7 * outputs[0].loss
    assert outputs[-1].terms["positive"] < 0.7 * outputs[0].terms["positive"]


def test_step__loss_is_the_sum_of_its_terms(tmp_path: Path) -> None:
    config = voco_config(regulariser_weight=0.5)
    method = VoCo(small_fpn(), config)
    output = method(method.augment(voco_batch(tmp_path, config)))
    terms = output.terms
    total = terms["positive"] + terms["negative"] + 0.5 * terms["regulariser"]
    torch.testing.assert_close(output.loss.detach(), total)


def test_step__normalises_all_crops_and_bases_of_the_batch_together(tmp_path: Path) -> None:
    config = voco_config(crops=3)
    method = VoCo(small_fpn(), config)
    rows = []
    method.head[1].register_forward_hook(lambda module, inputs, output: rows.append(output.detach().clone()))
    method(method.augment(voco_batch(tmp_path, config)))
    assert len(rows) == 1 and rows[0].shape[0] == 2 * (3 + 4)
    torch.testing.assert_close(rows[0].mean(0), torch.zeros(8), rtol=0, atol=1e-5)


def test_step__permuting_the_crops_changes_nothing(tmp_path: Path) -> None:
    config = voco_config(crops=3)
    method = VoCo(small_fpn(), config)
    views = method.augment(voco_batch(tmp_path, config))
    order = torch.tensor([2, 0, 1])
    permuted = {
        **views,
        "views": torch.cat([views["views"][:, order], views["views"][:, 3:]], 1),
        "labels": views["labels"][:, order],
    }
    torch.testing.assert_close(method(views).loss, method(permuted).loss, rtol=1e-4, atol=1e-5)


def test_teacher__equals_the_student_first_and_follows_it_without_gradient(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = voco_config()
    method = VoCo(small_fpn(), config)
    assert method.teacher is not None
    student = {**{f"backbone.{k}": v for k, v in method.backbone.state_dict().items()},
               **{f"head.{k}": v for k, v in method.head.state_dict().items()}}  # fmt: skip
    teacher = method.teacher.state_dict()
    assert teacher.keys() == student.keys() and all(torch.equal(teacher[k], student[k]) for k in student)
    before = {k: v.clone() for k, v in teacher.items()}
    _train(method, method.augment(voco_batch(tmp_path, config)), 1)
    moved = 0
    for name, parameter in method.teacher.named_parameters():
        assert not parameter.requires_grad and parameter.grad is None
        expected = 0.9 * before[name] + 0.1 * student[name]  # the student's tensors are its own, changed in place
        torch.testing.assert_close(parameter.detach(), expected)
        moved += not torch.equal(parameter, before[name])
    assert moved > 10


def test_teacher__is_absent_from_the_optimiser_and_shares_the_unused_decoder() -> None:
    method = VoCo(small_fpn(), voco_config())
    assert method.teacher is not None
    optimiser = build_optimiser(method.config, method.parameters())
    optimised = {id(p) for group in optimiser.param_groups for p in group["params"]}
    assert not optimised & {id(p) for p in method.teacher.parameters()}
    assert optimised == {id(p) for n, p in [*method.backbone.named_parameters(), *method.head.named_parameters()]
                         if not n.startswith(method.backbone.unused)}  # fmt: skip
    own = dict(method.backbone.named_parameters())
    for name, parameter in method.teacher["backbone"].named_parameters():
        assert (parameter is own[name]) == name.startswith(method.backbone.unused)


def test_teacher__the_papers_objective_has_none() -> None:
    method = VoCo(small_fpn(), voco_config(objective="paper"))
    assert method.teacher is None and not any("teacher" in name for name in method.state_dict())
    method.after_step(0)


def test_teacher__begins_as_the_student_of_another_runs_backbone(tmp_path: Path) -> None:
    Pretraining(make_setup(tmp_path / "first", "vox2vec", num_epochs=1, steps_per_epoch=1), CPU).run()
    method = make_setup(tmp_path / "second", "voco").build_method()
    assert isinstance(method, VoCo) and method.teacher is not None
    load_weights(method, Stored(tmp_path / "first" / "run" / FINAL))
    student = method.backbone.state_dict()
    assert all(torch.equal(v, student[k]) for k, v in method.teacher["backbone"].state_dict().items())


def test_run__interrupted_and_resumed_ends_bitwise_as_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    whole = make_setup(tmp_path / "whole", "voco", warmup_steps=2)
    Pretraining(whole, CPU).run()

    parts = make_setup(tmp_path / "parts", "voco", warmup_steps=2)
    run = Pretraining(parts, CPU)
    after_step = VoCo.after_step

    def stop(self: VoCo, step: int) -> None:
        after_step(self, step)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(VoCo, "after_step", stop)
    with pytest.raises(Interrupted):
        run.run()
    monkeypatch.undo()
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    torch.manual_seed(1234)
    resumed(parts, LATEST).run()
    ends = [load_checkpoint(s.folder / FINAL) for s in (whole, parts)]
    for key in ("method_state", "optimiser_state", "step", "epoch"):
        assert same_content(ends[0][key], ends[1][key]), key
    state = ends[0]["method_state"]
    followed = [k for k in state if k.startswith("teacher.backbone.") and "right_" not in k]
    assert any(not torch.equal(state[k], state[k.removeprefix("teacher.")]) for k in followed)
    row = read_rows(parts.folder / "metrics.jsonl")[-1]
    assert {"positive", "negative", "regulariser", "dead_pairs", "val_positive"} <= row.keys()


def test_run__reads_the_bodies_that_were_made_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    setup = make_setup(tmp_path, "voco", body_size=(6, 12, 30), num_epochs=1)
    request: Any = SimpleNamespace(method_class=VoCo, num_processes=1, may_preprocess=True)

    def full(*_: object) -> Path:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepare_resized, "save_resized", full)
    with pytest.raises(UserError, match="no space left in"):
        pretrain._prepare_bodies(setup, request)
    monkeypatch.undo()
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")
    pretrain._prepare_bodies(setup, request)
    stored = setup.train.folders[0].images.with_name("nnUNetPlans_3d_fullres_6x12x30_body")
    assert {file.stem for file in stored.glob("*.b2nd")} == {f"case_{i}" for i in range(6)}
    monkeypatch.setattr(BloscVolume, "read", None)
    monkeypatch.setattr(BloscVolume, "read_body", None)
    Pretraining(setup, CPU).run()
    assert {"loss", "val_loss"} <= read_rows(setup.folder / "metrics.jsonl")[-1].keys()


def test_step__swin_student_learns_at_64_cubed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = voco_config(patch_size=(64, 64, 64), batch_size=1, crops=1, grid=(1, 1, 2), projection_dim=16)
    method = VoCo(SwinPyramid(feature_size=12, depths=(1, 1, 1, 1), window_size=4), config)
    output = method(method.augment(voco_batch(tmp_path, config)))
    output.loss.backward()
    silent = [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert output.loss.isfinite() and not silent and output.embeddings.shape == (3, 16)
