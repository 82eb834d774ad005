from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

import nnssl_trainers
from nnssl.benchmarking.methods import Method, count_trained, read_methods, resolve, trainable_parameters
from nnssl.core.errors import UserError
from tests.foreign_plans import hide_command_in
from tests.pretrainings import tiny_plans, write_pretraining

CONFIGURATION = "3d_fullres"
PROBE = "nnUNetTrainer_SSLLinearProbe"


@pytest.fixture(autouse=True)
def _trainers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", str(Path(str(nnssl_trainers.__file__)).parent))


def test_read_methods__forms_of_an_item() -> None:
    items = [PROBE, "a=T", "b=T,P", "c=T,,random", "d=T,P,/x/fold_all,nnssl_initial_lr=1e-3,nnssl_num_epochs=2"]
    assert read_methods(items, "default") == [
        Method(PROBE, PROBE, "default"),
        Method("a", "T", "default"),
        Method("b", "T", "P"),
        Method("c", "T", "default", "random"),
        Method("d", "T", "P", "/x/fold_all", {"nnssl_initial_lr": "1e-3", "nnssl_num_epochs": "2"}),
    ]


@pytest.mark.parametrize("item", ["", "=T", "a=", "a/b=T", "a=T,b,c,d"])
def test_read_methods__mistakes(item: str) -> None:
    with pytest.raises(UserError, match="-tr cannot read"):
        read_methods([item], "default")


def test_resolve__full_path_of_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_pretraining(tmp_path / "results", tiny_plans())
    environment = {"nnUNet_results": str(tmp_path / "results"), "nnssl_num_epochs": "2", "nnssl_initial_lr": "1"}
    environment["nnssl_trusted_modules"] = "mine"  # no setting of a training: it may be set later
    only = resolve(
        Method("a", PROBE, "p", variables={"nnssl_initial_lr": "2"}), tiny_plans(), CONFIGURATION, environment
    )
    assert only.variables == {"nnssl_checkpoint": str(file), "nnssl_initial_lr": "2", "nnssl_num_epochs": "2"}
    inside = tiny_plans() | {"nnssl": {"checkpoint": str(file.parent.relative_to(tmp_path / "results"))}}
    assert resolve(Method("a", PROBE, "p"), inside, CONFIGURATION, environment).checkpoint == str(file)
    monkeypatch.chdir(file.parents[1])
    for folder in ("fold_all", "."):  # as of -m of the other commands
        assert resolve(Method("a", PROBE, "p", folder), {}, CONFIGURATION, {}).checkpoint == str(file)
    # an item's own checkpoint also replaces that of its plans
    assert (
        resolve(Method("a", PROBE, "p", "random"), inside, CONFIGURATION, environment).variables["nnssl_checkpoint"]
        == "random"
    )


def test_resolve__a_checkpoint_per_seed(tmp_path: Path) -> None:
    files = [write_pretraining(tmp_path / f"seed_{seed}", tiny_plans()) for seed in (0, 1)]
    fold = str(files[0].parent).replace("seed_0", "seed_{seed}")
    found = resolve(Method("a", PROBE, "p", fold), tiny_plans(), CONFIGURATION, {}, seeds=2)
    assert found.checkpoint == fold == found.record()["checkpoint"]
    assert [found.variables_of(seed)["nnssl_checkpoint"] for seed in (0, 1)] == [str(file.parent) for file in files]
    with pytest.raises(UserError, match=r"a: there is no checkpoint .*seed_2"):
        resolve(Method("a", PROBE, "p", fold), tiny_plans(), CONFIGURATION, {}, seeds=3)


def test_resolve__trainers_that_start_from_nothing() -> None:
    for trainer in ("nnUNetTrainer", "nnUNetTrainer_SSLScratch"):
        assert resolve(Method("a", trainer, "p"), {}, CONFIGURATION, {}) == Method("a", trainer, "p")


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (Method("a", PROBE, "p", "/nowhere"), "no checkpoint /nowhere"),
        (Method("a", PROBE, "p"), "no finished pretraining"),
        (Method("a", PROBE, "p", variables={"nnssl_checkpoint": "x"}), "write the checkpoint as its third part"),
        (Method("a", "nnUNetTrainer_SSLScratch", "p", "random"), "leave out the checkpoint of a"),
    ],
)
def test_resolve__mistakes(tmp_path: Path, method: Method, words: str) -> None:
    with pytest.raises(UserError, match=words):
        resolve(method, {}, CONFIGURATION, {"nnUNet_results": str(tmp_path)})


def _after_a_step(make, frozen: bool) -> int | None:  # type: ignore[no-untyped-def]
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    if frozen:
        network[0].requires_grad_(False)
    optimiser = make([p for p in network.parameters() if p.requires_grad])
    network(torch.rand(5, 4)).sum().backward()
    optimiser.step()
    return count_trained(optimiser.state_dict())


def test_count_trained__what_the_optimiser_moved() -> None:
    for make in (torch.optim.Adam, torch.optim.AdamW, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)):
        assert _after_a_step(make, frozen=False) == 15 + 6 + 8
        assert _after_a_step(make, frozen=True) == 6 + 8


def test_count_trained__unknown_without_a_state() -> None:
    assert _after_a_step(lambda p: torch.optim.SGD(p, 0.1), frozen=False) is None


def test_trainable_parameters__runs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, marker = tmp_path / "checkpoint_final.pth", tmp_path / "called"
    torch.save({"optimizer_state": {"state": {0: {"exp_avg": torch.zeros(3, 4)}}}}, file)
    assert trainable_parameters(tmp_path) == 12
    hide_command_in(file, marker)
    with caplog.at_level(logging.WARNING, "nnssl"):
        assert trainable_parameters(tmp_path) is None
    assert not marker.exists() and f"{file} is not opened" in caplog.text
