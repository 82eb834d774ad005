"""What all trainers of the package refuse, without training: plans and checkpoints that would run code."""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

import nnssl_trainers
from nnssl.checkpoints import pretrained
from nnssl.core.errors import UserError
from nnssl.data.records import Record, Records, labels_digest, write_withdrawn
from nnssl.finetuning import base_trainer as usable_cases
from nnssl.finetuning import teacher
from nnssl.finetuning.base_trainer import CheckedTrainer, UsableCases, apply_settings
from nnssl.finetuning.encodings import EncodingsTrainer
from nnssl.finetuning.partial_labels import PartialLabels
from nnssl.networks.trusted import VARIABLE
from nnssl.pretraining.reporting import TENSORBOARD
from tests.deployment.models import DATASET_JSON, model_plans
from tests.finetuning.flare import log_of, make_trainer
from tests.finetuning.half_annotated import NAME
from tests.foreign_plans import SAID, Command, with_command


def _trainers() -> list[Any]:
    rooms = [importlib.import_module(f"nnssl_trainers.{m.name}") for m in pkgutil.iter_modules(nnssl_trainers.__path__)]
    return [kind for room in rooms for kind in vars(room).values()
            if inspect.isclass(kind) and kind.__module__ == room.__name__]  # fmt: skip


TRAINERS = _trainers()
UNET = {"levels": "decoder", "head": "unet", "intensity": None}


def _build(trainer: Any, plans: dict[str, Any], deep: bool = False) -> Any:
    manager = PlansManager(plans)
    return trainer.build_network_architecture(manager, manager.get_configuration("3d_fullres"), 1, 3, deep)


def _make(trainer: Any, plans: dict[str, Any]) -> Any:
    return trainer(plans | {"continue_training": True}, "3d_fullres", 0, DATASET_JSON, torch.device("cpu"))


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    return tmp_path


def test_trainers__are_all_here() -> None:
    assert len(TRAINERS) > 15 and all(issubclass(trainer, CheckedTrainer) for trainer in TRAINERS)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_build_network_architecture__calls_nothing_that_plans_name(trainer: Any, tmp_path: Path) -> None:
    marker = tmp_path / "called"
    plans = model_plans() | {"nnssl": {"network": {**UNET, "encoder": {}}}}
    with pytest.raises(UserError, match=SAID):
        _build(trainer, with_command(plans, marker))
    plans["configurations"]["3d_fullres"]["resampling_fn_probabilities"] = "recursive_find_python_class"
    with pytest.raises(UserError, match="'recursive_find_python_class' as resampling_fn_probabilities"):
        _build(trainer, plans)
    assert not marker.exists()


def test_build_network_architecture__nor_what_the_encoder_of_plans_names(tmp_path: Path) -> None:
    marker = tmp_path / "called"
    harmful = with_command(model_plans(), marker)["configurations"]["3d_fullres"]
    encoder = {"network": {"architecture": harmful["architecture"]}, "levels": "decoder", "heads": {}}
    with pytest.raises(UserError, match=SAID):
        _build(EncodingsTrainer, model_plans() | {"nnssl": {"network": {"encoder": encoder, "intensity": None}}})
    assert not marker.exists()


def test_build_network_architecture__a_class_of_a_trusted_module_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "layers_of_mine.py").write_text("import torch\nclass Mine(torch.nn.LeakyReLU):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    plans = model_plans() | {"nnssl": {"network": UNET}}
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]["nonlin"] = "layers_of_mine.Mine"
    for trainer in TRAINERS:
        if trainer.__name__ in ("nnUNetTrainer_VoCoFinetune", "nnUNetTrainer_Distill", "nnUNetTrainer_PartialLabels"):
            monkeypatch.delenv(VARIABLE, raising=False)
            with pytest.raises(UserError, match=f"{VARIABLE}=layers_of_mine$"):
                _build(trainer, plans)
            monkeypatch.setenv(VARIABLE, "layers_of_mine")
            assert any(type(module).__name__ == "Mine" for module in _build(trainer, plans).modules())


@pytest.mark.parametrize("deep", [False, True])
def test_build_network_architecture__is_nnunets_own(deep: bool) -> None:
    ours, stock = (_build(trainer, model_plans(), deep) for trainer in (PartialLabels, nnUNetTrainer))
    assert str(ours) == str(stock) and ours.decoder.deep_supervision == deep


@pytest.mark.parametrize("trainer", TRAINERS)
def test_init__looks_at_the_names_first(trainer: Any, results: Path) -> None:
    with pytest.raises(UserError, match=r"label_manager: .*'torch'"):
        _make(trainer, model_plans() | {"label_manager": "torch"})


@pytest.mark.parametrize("trainer", TRAINERS)
def test_load_checkpoint__runs_nothing(trainer: Any, results: Path) -> None:
    marker, file = results / "called", results / "checkpoint_latest.pth"
    torch.save({"init_args": {"plans": {"nnssl": {}}}, "logging": Command(marker)}, file)
    made = _make(trainer, model_plans())
    made.was_initialized = True  # nothing of it is needed
    with pytest.raises(UserError, match=r"checkpoint_latest.pth is not opened.*system"):
        made.load_checkpoint(str(file))
    assert not marker.exists()


@pytest.mark.parametrize("trainer", TRAINERS)
def test_validation__ends_with_the_line_that_predicts(
    trainer: Any, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nnUNetTrainer, "perform_actual_validation", lambda *_: print("Mean Validation Dice"))
    monkeypatch.setattr(nnUNetTrainer, "load_checkpoint", lambda *_: None)
    monkeypatch.setattr(nnUNetTrainer, "on_train_end", lambda *_: None)
    made = _make(trainer, model_plans())
    made.annotations, made.do_split = SimpleNamespace(listed=False), lambda: ([], [])
    made.perform_actual_validation()
    assert capsys.readouterr().out.endswith(
        "Mean Validation Dice\n"
    )  # --disable_checkpointing: nothing to predict with
    folder = Path(made.output_folder)
    for name in ("final", "best"):
        (folder / f"checkpoint_{name}.pth").touch()
    line = (f"nnUNetv2_predict -d 500 -i INPUT -o OUTPUT -c 3d_fullres -f 0 -tr {trainer.__name__} "
            f"-p nnsslPlans_tiny -device cpu")  # fmt: skip
    made.perform_actual_validation()
    assert capsys.readouterr().out.endswith(f"Mean Validation Dice\nnext:\n  {line}\n")
    CheckedTrainer.load_checkpoint(made, str(folder / "checkpoint_best.pth"))  # --val_best
    made.perform_actual_validation()
    best = line.replace(" -device", " -chk checkpoint_best.pth -device")
    assert capsys.readouterr().out.endswith(f"next:\n  {best}\n")
    made.on_train_end()  # --c from the best checkpoint, where there is no other
    made.perform_actual_validation()
    assert Path(made.log_file).read_text().rstrip().endswith(line)
    capsys.readouterr()
    made.local_rank = 1
    made.perform_actual_validation()
    assert capsys.readouterr().out == "Mean Validation Dice\n"


LABELS_JSON = {"labels": {"background": 0, "a": 1}}


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """As far as the split needs it, with nnU-Net's split of the cases a to f."""
    made = object.__new__(UsableCases)
    said: list[str] = []
    attributes = {
        "preprocessed_dataset_folder": str(tmp_path / "Dataset001_X" / "data"), "configuration_name": "3d_fullres",
        "plans_manager": SimpleNamespace(plans={"plans_name": "P"}), "dataset_json": LABELS_JSON, "fold": 0,
        "print_to_log_file": said.append, "said": said,
    }  # fmt: skip
    made.__dict__.update(attributes)
    (tmp_path / "Dataset001_X").mkdir()
    monkeypatch.setattr(nnUNetTrainer, "do_split", lambda self: (["a", "b", "c"], ["d", "e"]))
    monkeypatch.setattr(usable_cases, "settings_digest", lambda plans, configuration: "plans")
    return made


def test_UsableCases__what_must_not_be_trained_on_is_left_out_and_said_once(trainer: Any) -> None:
    assert trainer.do_split() == (["a", "b", "c"], ["d", "e"]) and not trainer.said
    folder = Path(trainer.preprocessed_dataset_folder)
    write_withdrawn(folder.parent, {"b", "elsewhere"})
    Records(folder).append([Record("a", None, "plans"), Record("d", None, "other plans"), Record("f", None, "no")])
    for _ in range(2):
        assert trainer.do_split() == (["a", "c"], ["e"])
    (said,) = trainer.said
    assert "b (its raw files are gone)" in said and "d (made with other plans)" in said and "f" not in said.split()


def test_UsableCases__nothing_left_is_an_error_with_the_line_to_type(trainer: Any) -> None:
    Records(Path(trainer.preprocessed_dataset_folder)).append([Record(case, None, "other") for case in "de"])
    with pytest.raises(UserError, match=r"validation case of fold 0.*-d Dataset001_X -p P -c 3d_fullres"):
        trainer.do_split()


def test_UsableCases__volumes_of_other_labels_are_used_with_a_warning(trainer: Any) -> None:
    now = labels_digest(LABELS_JSON)
    Records(Path(trainer.preprocessed_dataset_folder)).append(
        [Record("a", None, "plans", "before"), Record("b", None, "plans", now)]
    )
    assert trainer.do_split() == (["a", "b", "c"], ["d", "e"])
    (said,) = trainer.said
    assert "1 volumes" in said and "other labels" in said


def test_UsableCases__the_validation_loss_is_of_the_cases_that_a_fold_has_for_it(
    flare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnssl_checkpoint", "random")
    file = flare / "preprocessed" / NAME / "splits_final.json"
    (split,) = json.loads(file.read_text())
    *training, online = split["train"]
    file.write_text(json.dumps([{"train": training, "val": split["val"], "online_val": [online]}]))
    for name in ("SSLUNetFinetune", "PartialLabels"):
        made = make_trainer(flare, name)
        made.initialize()
        found = [list(dataset.identifiers) for dataset in made.get_tr_and_val_datasets()]
        assert found == [sorted(training), [online]] and "that of 1 cases" in log_of(made)
        assert made.do_split()[1] == split["val"]  # which nnU-Net predicts in the end


def test_UsableCases__is_a_base_of_every_trainer_of_this_package() -> None:
    found = 0
    for module in pkgutil.iter_modules(nnssl_trainers.__path__):
        content = vars(importlib.import_module(f"nnssl_trainers.{module.name}"))
        for name, value in content.items():
            if name.startswith("nnUNetTrainer_") and inspect.isclass(value):
                assert issubclass(value, UsableCases), name
                found += 1
    assert found > 10


def _trainer() -> SimpleNamespace:
    return SimpleNamespace(
        num_epochs=150, num_iterations_per_epoch=300, num_val_iterations_per_epoch=50, initial_lr=3e-4
    )


def test_apply_settings__environment_before_plans_before_the_trainers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = _trainer()
    monkeypatch.setenv("nnssl_num_epochs", "2")
    monkeypatch.setenv("nnssl_initial_lr", "1e-2")
    apply_settings(trainer, {"num_epochs": 3, "num_iterations_per_epoch": 4, "initial_lr": 0.5})
    assert vars(trainer) == {
        "num_epochs": 2, "num_iterations_per_epoch": 4, "num_val_iterations_per_epoch": 50, "initial_lr": 0.01,
    }  # fmt: skip


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_apply_settings__refuses_what_is_no_length(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("nnssl_num_val_iterations_per_epoch", value)
    with pytest.raises(UserError, match="nnssl_num_val_iterations_per_epoch takes a whole number"):
        apply_settings(_trainer(), {})


def test_apply_settings__mirroring_of_the_predictions(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stock(CheckedTrainer):
        """Nothing but the base."""

    trainer = _make(Stock, model_plans())
    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    assert trainer.inference_allowed_mirroring_axes == (0, 1, 2)
    monkeypatch.setenv("nnssl_test_mirroring", "0")
    trainer = _make(Stock, model_plans())
    assert trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[-1] == (0, 1, 2)  # training mirrors
    assert trainer.inference_allowed_mirroring_axes is None
    monkeypatch.setenv("nnssl_test_mirroring", "no")
    with pytest.raises(UserError, match="nnssl_test_mirroring takes 0 or 1, not 'no'"):
        apply_settings(trainer, {})


def test_apply_settings__knows_every_variable_of_the_package() -> None:
    others = {pretrained.VARIABLE, teacher.VARIABLE, VARIABLE, TENSORBOARD}
    assert others <= {f"nnssl_{name}" for name in usable_cases._VARIABLES}


def test_apply_settings__refuses_a_misspelt_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnssl_results", "/of/another/package")
    apply_settings(SimpleNamespace(), {})
    monkeypatch.setenv("nnssl_recpie", "sgd")
    with pytest.raises(UserError, match=r"nnssl_recpie.*export nnssl_recipe="):
        apply_settings(SimpleNamespace(), {})


@pytest.mark.parametrize("value", ["0", "-1", "fast", "inf", "nan"])
def test_apply_settings__refuses_what_is_no_rate(value: str) -> None:
    with pytest.raises(UserError, match="nnssl_initial_lr takes a number above 0"):
        apply_settings(_trainer(), {"initial_lr": value})
