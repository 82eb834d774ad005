from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from nnssl.methods.base import MethodConfig
from nnssl.methods.sam.method import SamConfig
from nnssl.methods.voco.method import VoCo, VoCoConfig
from nnssl.methods.vox2vec.method import Vox2vecConfig
from nnssl.networks.fpn_unet import FPN3d
from nnssl.pretraining.optimisation import (
    build_optimiser,
    choose_precision,
    compile_backbones,
    learning_rate,
    load_optimiser,
)


def test_learning_rate__warm_up_then_cosine_to_zero() -> None:
    config = MethodConfig(num_epochs=10, steps_per_epoch=10, learning_rate=1.0, schedule="cosine", warmup_steps=20)
    rates = [learning_rate(config, s) for s in range(101)]
    assert rates[:3] == pytest.approx([0, 1 / 20, 2 / 20]) and rates[19] == pytest.approx(19 / 20) and rates[20] == 1
    assert rates[60] == pytest.approx(0.5) and rates[100] == pytest.approx(0)


def test_learning_rate__vox2vec_is_constant() -> None:
    assert {learning_rate(Vox2vecConfig(), s) for s in (0, 50_000, 99_999)} == {3e-4}


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_build_optimiser__takes_what_needs_a_gradient(name: str, kind: type) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    parameters[1].requires_grad_(False)
    config = MethodConfig(optimiser=name, learning_rate=0.5, weight_decay=0.1)  # type: ignore[arg-type]
    optimiser = build_optimiser(config, parameters)
    assert type(optimiser) is kind
    group = optimiser.param_groups[0]
    assert len(group["params"]) == 1 and group["lr"] == 0.5 and group["weight_decay"] == 0.1


def test_choose_precision__cpu_is_float32_unless_told() -> None:
    assert choose_precision(MethodConfig(), torch.device("cpu")) == torch.float32
    assert choose_precision(MethodConfig(precision="bf16"), torch.device("cpu")) == torch.bfloat16


def test_build_optimiser__sam_has_no_nesterov_but_a_run_that_began_with_it_keeps_it() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2))]
    optimiser = build_optimiser(SamConfig(), parameters)
    (group,) = optimiser.param_groups
    assert [group[key] for key in ("lr", "momentum", "weight_decay", "nesterov")] == [0.02, 0.9, 1e-4, False]
    optimiser.load_state_dict(torch.optim.SGD(parameters, 0.02, 0.9, nesterov=True).state_dict())
    assert optimiser.param_groups[0]["nesterov"]


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_build_optimiser__is_fused_on_a_card_alone(name: str) -> None:
    config = MethodConfig(optimiser=name)  # type: ignore[arg-type]
    with FakeTensorMode():
        on_card = build_optimiser(config, [torch.nn.Parameter(torch.zeros(2, device="cuda"))])
    assert on_card.param_groups[0]["fused"] is True
    assert not build_optimiser(config, [torch.nn.Parameter(torch.zeros(2))]).param_groups[0]["fused"]


@pytest.mark.parametrize("began_fused", [False, True])
def test_load_optimiser__goes_on_as_this_device_would(began_fused: bool) -> None:
    def stepped(optimiser: torch.optim.Optimizer) -> list[torch.Tensor]:
        parameters = optimiser.param_groups[0]["params"]
        for parameter in parameters:
            parameter.grad = torch.linspace(-1, 1, 5)
        optimiser.step()
        return [parameter.detach().clone() for parameter in parameters]

    config = MethodConfig(optimiser="adamw", weight_decay=0.1, amsgrad=True)
    first = torch.optim.AdamW(
        [torch.nn.Parameter(torch.ones(5))], 1e-4, weight_decay=0.1, amsgrad=True, fused=began_fused
    )
    stepped(first)
    second = build_optimiser(config, [torch.nn.Parameter(first.param_groups[0]["params"][0].detach().clone())])
    load_optimiser(second, copy.deepcopy(first.state_dict()))
    assert not second.param_groups[0]["fused"]
    torch.testing.assert_close(stepped(second), stepped(first))


@pytest.mark.parametrize(("value", "compiled"), [("t", True), ("True", True), ("f", False), (None, False)])
def test_compile_backbones__keeps_names_values_and_copies(
    value: str | None, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("nnUNet_compile", raising=False)
    if value:
        monkeypatch.setenv("nnUNet_compile", value)
    made: list[Any] = []

    def pretended(call: Any, **_: Any) -> Any:
        made.append(call)
        return call

    monkeypatch.setattr(torch, "compile", pretended)
    torch.manual_seed(0)
    method = VoCo(FPN3d(1, 4, 2), VoCoConfig(patch_size=(8, 8, 8), projection_dim=8))
    names, image = list(method.state_dict()), torch.rand(1, 1, 8, 8, 8)
    expected = method.backbone(image)
    compile_backbones(method)
    assert len(made) == (2 if compiled else 0)  # student and teacher
    assert list(method.state_dict()) == names
    torch.testing.assert_close(method.backbone(image), expected)
    torch.testing.assert_close(copy.deepcopy(method).backbone(image), expected)
