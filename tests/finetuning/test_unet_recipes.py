"""Recipes that a variable or the plans choose."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.nn.parallel import DistributedDataParallel

from nnssl.core.errors import UserError
from tests.finetuning.flare import log_of, make_trainer, read_plans, source_plans
from tests.pretrainings import write_pretraining

NAME = "SSLUNetFinetune"


@pytest.fixture(autouse=True)
def random_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnssl_checkpoint", "random")


def _made(flare: Path, block: dict[str, Any] | None = None, continued: bool = False) -> Any:
    return make_trainer(flare, NAME, continued, read_plans(flare) | {"nnssl": block or {}})


def _saved(trainer: Any) -> str:
    file = str(Path(trainer.output_folder) / "checkpoint_latest.pth")
    trainer.save_checkpoint(file)
    return file


def test_recipe__sgd_by_the_variable(flare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnssl_recipe", "sgd")
    monkeypatch.setenv("nnssl_num_epochs", "1000")
    trainer = _made(flare)
    trainer.initialize()
    (group,) = trainer.optimizer.param_groups
    assert type(trainer.optimizer) is torch.optim.SGD
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.99, True, 3e-5)
    rates = []
    for epoch in (0, 24, 49, 50, 999):
        trainer.lr_scheduler.step(epoch)
        rates.append(group["lr"])
    assert rates == pytest.approx([2e-5, 5e-4, 1e-3, 1e-3, 1e-3 * (1 / 950) ** 0.9])
    assert trainer.plans_manager.plans["nnssl"]["recipe"] == "sgd"


@pytest.mark.parametrize(("epochs", "expected"), [(4, 1e-3), (19, 1e-3), (20, 1e-3), (40, 5e-4), (100, 2e-4)])
def test_recipe__a_short_training_warms_up_in_proportion(
    flare: Path, monkeypatch: pytest.MonkeyPatch, epochs: int, expected: float
) -> None:
    monkeypatch.setenv("nnssl_recipe", "sgd")
    monkeypatch.setenv("nnssl_num_epochs", str(epochs))
    trainer = _made(flare)
    trainer.network = torch.nn.Linear(2, 2)
    optimiser, rates = trainer.configure_optimizers()
    rates.step(0)
    assert optimiser.param_groups[0]["lr"] == pytest.approx(expected)


def test_recipe__of_the_plans_and_the_rate_that_is_set(flare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = _made(flare, block={"recipe": "sgd", "initial_lr": 0.5})
    assert (trainer.recipe, trainer.initial_lr, trainer.weight_decay) == ("sgd", 0.5, 3e-5)
    monkeypatch.setenv("nnssl_recipe", "adamw")
    trainer = _made(flare, block={"recipe": "sgd"})
    assert (trainer.recipe, trainer.initial_lr, trainer.weight_decay) == ("adamw", 1e-3, 1e-5)  # 4 steps
    monkeypatch.setenv("nnssl_recipe", "lion")
    with pytest.raises(UserError, match="nnssl_recipe takes adamw or sgd, not 'lion'"):
        _made(flare)


def test_recipe__is_kept_by_a_continued_training(flare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnssl_recipe", "sgd")
    trainer = _made(flare)
    trainer.initialize()
    file = _saved(trainer)
    monkeypatch.delenv("nnssl_recipe")
    again = _made(flare, continued=True)
    again.load_checkpoint(file)
    assert type(again.optimizer) is torch.optim.SGD and again.initial_lr == 1e-3
    assert again.plans_manager.plans["nnssl"]["recipe"] == "sgd"
    monkeypatch.setenv("nnssl_recipe", "adamw")
    with pytest.raises(UserError, match="began with the recipe sgd, not adamw; type: export nnssl_recipe=sgd"):
        _made(flare, continued=True).load_checkpoint(file)


@pytest.mark.parametrize(("steps", "set_rate", "expected"), [(99, None, 1e-3), (100, None, 3e-4), (99, "0.5", 0.5)])
def test_recipe__a_short_training_has_a_higher_rate_and_keeps_it(
    flare: Path, monkeypatch: pytest.MonkeyPatch, steps: int, set_rate: str | None, expected: float
) -> None:
    monkeypatch.setenv("nnssl_num_epochs", "10")
    monkeypatch.setenv("nnssl_num_iterations_per_epoch", str(steps))
    if set_rate is not None:
        monkeypatch.setenv("nnssl_initial_lr", set_rate)
    trainer = _made(flare)
    trainer.initialize()
    assert trainer.initial_lr == expected
    file = _saved(trainer)
    monkeypatch.setenv("nnssl_num_iterations_per_epoch", "200" if steps < 100 else "2")
    monkeypatch.delenv("nnssl_initial_lr", raising=False)
    again = _made(flare, continued=True)
    again.load_checkpoint(file)
    assert again.initial_lr == expected == again.optimizer.defaults["lr"]


@pytest.mark.parametrize("method", ["vox2vec", "lapn", "sam", "simclr"])
def test_start__what_was_trained_of_encoder_and_decoder_is_loaded(
    flare: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.delenv("nnssl_checkpoint")
    shutil.rmtree(flare / "results")
    (flare / "results").mkdir()
    source = source_plans(flare)
    state = torch.load(write_pretraining(flare / "results", source, method=method), weights_only=True)["method_state"]
    plans = source | {"dataset_name": read_plans(flare)["dataset_name"]}
    trainer = make_trainer(flare, NAME, plans=plans)
    trainer.initialize()
    own = dict(trainer.plain_network.named_parameters())
    same = {n for n, p in own.items() if (given := state.get(f"backbone.{n}")) is not None and torch.equal(p, given)}
    decoder = [n for n in own if "encoder" not in n]
    trained = 0 if method == "simclr" else len([n for n in decoder if "seg_layers" not in n])
    assert len([n for n in same if "encoder" in n]) == len(own) - len(decoder)
    assert len([n for n in same if "encoder" not in n]) == trained
    assert f"{len(own) - len(decoder)} of {len(own) - len(decoder)} tensors of the encoder, " in log_of(trainer)
    assert f"{trained} of {len(decoder)} tensors of the decoder" in log_of(trainer)


def test_recipe__outputs_start_at_the_frequencies(flare: Path) -> None:
    trainer = _made(flare)
    trainer.initialize()
    bias = trainer.plain_network.decoder.seg_layers[-1].bias
    assert bias.argmax() == 0 and bias.exp().sum().item() == pytest.approx(1) and bias.exp().min() > 0.009
    assert f"at least 0.01: {bias.exp()[0].item():.3f}, " in log_of(trainer)


@pytest.mark.parametrize(("recipe", "steps", "factors"), [
    ("adamw", "2", [1, 10]), ("adamw", "500", [1]), ("sgd", "2", [1]),
])  # fmt: skip
def test_recipe__outputs_of_a_short_training_have_a_higher_rate(
    flare: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, steps: str, factors: list[int]
) -> None:
    monkeypatch.setenv("nnssl_recipe", recipe)
    monkeypatch.setenv("nnssl_num_iterations_per_epoch", steps)
    trainer = _made(flare)
    trainer.initialize()
    trainer.lr_scheduler.step(0)
    groups = trainer.optimizer.param_groups
    assert [group["lr"] / groups[0]["lr"] for group in groups] == pytest.approx(factors)
    held = [{id(p) for p in group["params"]} for group in groups]
    assert len(set.union(*held)) == sum(map(len, held)) == len(list(trainer.plain_network.parameters()))
    if len(groups) > 1:
        assert held[1] == {id(p) for p in trainer.plain_network.decoder.seg_layers.parameters()}
    file = _saved(trainer)
    for other in ("2", "500"):  # of another length, and so with other groups
        monkeypatch.setenv("nnssl_num_iterations_per_epoch", other)
        again = _made(flare, continued=True)
        again.load_checkpoint(file)
        again.lr_scheduler.step(0)
        kept = again.optimizer.param_groups
        assert [group["lr"] / kept[0]["lr"] for group in kept] == pytest.approx(factors)


def test_recipe__trainings_from_before_there_were_two_go_on(flare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = _made(flare, block={"recipe": "adamw"})
    trainer.initialize()
    for later in ("recipe", "initial_lr"):
        del trainer.plans_manager.plans["nnssl"][later]
    file = _saved(trainer)
    assert "recipe" not in json.dumps(torch.load(file, weights_only=False)["init_args"]["plans"]["nnssl"])
    monkeypatch.setattr("nnssl.finetuning.unet_recipes.UNetFinetuneTrainer.default_recipe", "sgd")
    again = _made(flare, continued=True)
    assert again.recipe == "sgd"
    again.load_checkpoint(file)
    assert (again.recipe, again.initial_lr) == ("adamw", 3e-4)
    assert isinstance(again, nnUNetTrainer) and type(again.optimizer) is torch.optim.AdamW


def test_scratch__is_nnunets_training_of_the_length_that_is_set(flare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnssl_checkpoint", str(flare / "nowhere"))  # random weights, whatever is asked for
    monkeypatch.setenv("nnssl_num_epochs", "7")
    trainer = make_trainer(
        flare, "SSLUNetScratch", plans=read_plans(flare) | {"nnssl": {"num_iterations_per_epoch": 3}}
    )
    stock = make_trainer(flare, "PartialLabels")  # whose optimiser and network are nnU-Net's
    for one in (trainer, stock):
        one.initialize()
        one.lr_scheduler.step(3)
    assert trainer.optimizer.param_groups[0].keys() == stock.optimizer.param_groups[0].keys()
    for key, value in stock.optimizer.param_groups[0].items():
        assert key == "params" or trainer.optimizer.param_groups[0][key] == value
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * (4 / 7) ** 0.9)
    assert type(trainer.optimizer) is torch.optim.SGD and trainer.optimizer.param_groups[0]["momentum"] == 0.99
    sizes = [sum(p.numel() for p in one.network.parameters()) for one in (trainer, stock)]
    assert sizes[0] == sizes[1] and trainer.enable_deep_supervision
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch) == (7, 2)  # the variable before the plans
    assert trainer.plans_manager.plans["nnssl"]["checkpoint"] == "random"


@pytest.mark.parametrize("name", ["SSLUNetFinetune", "AliceNNFormerFinetune"])  # without and with deep supervision
def test_several_processes__every_parameter_that_they_wait_for_has_a_gradient(
    flare: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    trainer = make_trainer(flare, name)
    monkeypatch.setattr("nnunetv2.training.nnUNetTrainer.nnUNetTrainer.DDP", _OnCpu)
    monkeypatch.setattr("nnssl.finetuning.freezing.DistributedDataParallel", _OnCpu)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        trainer.is_ddp = True  # nnU-Net would take a card
        trainer.initialize()
        trainer.set_deep_supervision_enabled(trainer.enable_deep_supervision)
        assert isinstance(trainer.network, DistributedDataParallel)
        for _ in range(2):  # the second forward asks whether the first backward pass reached everything
            output = trainer.network(torch.randn(1, 1, *trainer.configuration_manager.patch_size))
            outputs = output if isinstance(output, list) else [output]
            sum(y.square().mean() for y in outputs).backward()
    finally:
        torch.distributed.destroy_process_group()


class _OnCpu(DistributedDataParallel):
    def __init__(self, module: torch.nn.Module, device_ids: list[int]) -> None:
        super().__init__(module)
