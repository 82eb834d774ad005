from __future__ import annotations

from pathlib import Path

import pytest

import nnssl_trainers
from nnssl.benchmarking.methods import Method, read_methods, resolve
from nnssl.core.errors import UserError
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
