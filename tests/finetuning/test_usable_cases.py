from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

import nnssl_trainers
from nnssl.core.errors import UserError
from nnssl.data.records import Record, Records, labels_digest
from nnssl.data.unused import write_withdrawn
from nnssl.finetuning import base_trainer as usable_cases
from nnssl.finetuning.base_trainer import UsableCases

DATASET_JSON = {"labels": {"background": 0, "a": 1}}


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """As far as the split needs it, with nnU-Net's split of the cases a to f."""
    made = object.__new__(UsableCases)
    said: list[str] = []
    attributes = {
        "preprocessed_dataset_folder": str(tmp_path / "Dataset001_X" / "data"), "configuration_name": "3d_fullres",
        "plans_manager": SimpleNamespace(plans={"plans_name": "P"}), "dataset_json": DATASET_JSON, "fold": 0,
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
    now = labels_digest(DATASET_JSON)
    Records(Path(trainer.preprocessed_dataset_folder)).append(
        [Record("a", None, "plans", "before"), Record("b", None, "plans", now)]
    )
    assert trainer.do_split() == (["a", "b", "c"], ["d", "e"])
    (said,) = trainer.said
    assert "1 volumes" in said and "other labels" in said


def test_UsableCases__is_a_base_of_every_trainer_of_this_package() -> None:
    found = 0
    for module in pkgutil.iter_modules(nnssl_trainers.__path__):
        content = vars(importlib.import_module(f"nnssl_trainers.{module.name}"))
        for name, value in content.items():
            if name.startswith("nnUNetTrainer_") and inspect.isclass(value):
                assert issubclass(value, UsableCases), name
                found += 1
    assert found > 10
