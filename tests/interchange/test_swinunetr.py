from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nnssl.checkpoints.runs import open_run
from nnssl.core.errors import UserError
from nnssl.features.model import model_of
from nnssl.interchange.facts import facts_of
from tests.interchange.files import imported, saved
from tests.interchange.swins import SMALL, assert_same_swin_maps, encoder_maps, published_swin

State = dict[str, Tensor]
HEAD = torch.ones(2, 3)


@pytest.fixture(scope="module")
def v1() -> Any:
    return published_swin(is_v2=False)


@pytest.fixture(scope="module")
def v2() -> Any:
    return published_swin(is_v2=True)


def _begin(state: State, prefix: str) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def _encoder(network: Any) -> State:
    """What a VoCo student holds."""
    return {n: t for n, t in network.state_dict().items() if not n.startswith(("decoder", "out."))}


def _plans(run: Path) -> dict[str, Any]:
    plans: dict[str, Any] = json.loads((run / "plans.json").read_text())
    return plans


def test_voco__the_student_of_the_first_version(v2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = _encoder(v2), {n: t + 1 if t.is_floating_point() else t for n, t in _encoder(v2).items()}
    state = _begin(teacher, "module.teacher.") | _begin(student, "module.student.") | {"module.student.proj_head": HEAD}
    run = imported(saved({"state_dict": state, "epoch": 1}, tmp_path / "w"), tmp_path, monkeypatch)
    assert run.about["tensors_mapped"] == len(student) and run.about["levels"] == "encoder"
    assert run.about["tensors_left"] == len(teacher) + 1 and run.about["licence"] == "Apache-2.0"
    assert run.about["axes"] == "xyz" and run.about["fresh"] == []
    assert_same_swin_maps(run.folder, v2, encoder_maps)
    plans = _plans(run.folder)
    kwargs = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    assert {name: kwargs[name] for name in SMALL} == {n: list(v) if isinstance(v, tuple) else v
                                                      for n, v in SMALL.items()}  # fmt: skip
    assert kwargs["use_v2"]
    window = plans["foreground_intensity_properties_per_channel"]["0"]
    assert (window["percentile_00_5"], window["percentile_99_5"]) == (-175, 250)
    assert (window["mean"], window["std"]) == (-175, 425)  # 0 to 1


def test_voco__a_whole_network_under_an_older_name(v2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = {n.replace("swinViT.", "swin_vit."): t for n, t in v2.state_dict().items()}
    run = imported(saved(_begin(state, "backbone.") | {"student.0": HEAD}, tmp_path / "w"), tmp_path, monkeypatch)
    report = json.loads((run.folder / "import_report.json").read_text())
    assert run.about["levels"] == "decoder"
    assert set(report["left"]) == {"backbone.out.conv.conv.weight", "backbone.out.conv.conv.bias", "student.0"}
    assert len(report["mapped"]) == run.about["tensors_mapped"] == len(v2.state_dict()) - 2


def test_ssl__the_transformer_of_5050_volumes(v1: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                              caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    state = {n.replace("linear1", "fc1").replace("linear2", "fc2"): t for n, t in v1.swinViT.state_dict().items()}
    content = {"state_dict": _begin(state | {"rotation_head.weight": HEAD}, "module.")}
    run = imported(saved(content, tmp_path / "w"), tmp_path, monkeypatch)
    assert run.about["tensors_mapped"] == len(state) and run.about["tensors_left"] == 1
    assert run.about["fresh"] == ["encoder1.", "encoder2.", "encoder3.", "encoder4.", "encoder10."]
    assert "encoder10.*: these parts begin with random values" in caplog.text
    assert _plans(run.folder)["configurations"]["3d_fullres"]["spacing"] == [2.0, 1.5, 1.5]  # z, y, x
    network = torch.load(run.folder / "checkpoint_final.pth", weights_only=True)["method_state"]
    assert torch.equal(network["backbone.swinViT.patch_embed.proj.weight"], state["patch_embed.proj.weight"])
    trained = sum(tensor.numel() for name, tensor in state.items() if not name.endswith("position_index"))
    opened = open_run(run.folder)
    assert facts_of(opened, model_of(opened), opened.content, None).pretrained == trained  # of the model card


def test_ssl__the_whole_network_of_50000_volumes(v1: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = v1.state_dict()
    state = {n: t for n, t in whole.items() if not n.startswith("swinViT.")}
    for name, tensor in v1.swinViT.state_dict().items():
        stage = name[: len("layers1.0.")]
        state[f"encoder.{stage}0.{name[len(stage) :]}" if stage.startswith("layers") else f"encoder.{name}"] = tensor
    state |= {"encoder.mask_token": HEAD, "encoder.norm.weight": HEAD, "encoder.norm.bias": HEAD}
    run = imported(saved({"model": state}, tmp_path / "w"), tmp_path, monkeypatch)
    assert run.about["levels"] == "decoder" and run.about["tensors_mapped"] == len(whole) - 2
    report = json.loads((run.folder / "import_report.json").read_text())
    assert set(report["left"]) == {"encoder.mask_token", "encoder.norm.weight", "encoder.norm.bias",
                                   "out.conv.conv.weight", "out.conv.conv.bias"}  # fmt: skip
    given = torch.load(run.folder / "checkpoint_final.pth", weights_only=True)["method_state"]
    for name, tensor in whole.items():
        is_kernel = tensor.ndim == 5 and not name.startswith("swinViT.")
        expected = tensor.transpose(2, 4) if is_kernel else tensor
        assert name.startswith("out.") or torch.equal(given[f"backbone.{name}"], expected)


def test_swinunetr__of_unknown_origin_is_refused(v1: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"is a SwinUNETR.*spacing"):
        imported(saved({"state_dict": v1.state_dict()}, tmp_path / "w"), tmp_path, monkeypatch)


def test_voco__half_a_block_is_refused(v2: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = _encoder(v2)
    del state["encoder10.layer.conv1.conv.weight"]
    with pytest.raises(UserError, match=r"lacks 1 of \d+ tensors.*encoder10"):
        imported(saved(state, tmp_path / "w"), tmp_path, monkeypatch)
