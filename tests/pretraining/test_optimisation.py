from __future__ import annotations

import pytest
import torch

from nnssl.methods.base import MethodConfig
from nnssl.methods.sam.method import SamConfig
from nnssl.methods.vox2vec.method import Vox2vecConfig
from nnssl.pretraining.optimisation import build_optimiser, choose_precision, learning_rate


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
