from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from nnssl.core.errors import UserError
from nnssl.deployment.model_folder import load_folds, read_model
from tests.deployment.models import PATCH, TRAINERS, write_model
from tests.foreign_plans import SAID, hide_command_in, with_command

FINAL = "checkpoint_final.pth"


def test_read_model__what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*nowhere; give -m the model folder"):
        read_model(tmp_path / "nowhere", "0", FINAL)
    with pytest.raises(UserError, match=r"has no plans.json; give -m the folder that holds it"):
        read_model(tmp_path, "0", FINAL)
    write_model(tmp_path, fold="all")
    with pytest.raises(UserError, match=r"no fold_0/.*choose with -f and -chk among: fold_all/checkpoint_final.pth"):
        read_model(tmp_path, "0", FINAL)
    assert read_model(tmp_path, "all", FINAL).description.fold == "all"


def test_read_model__a_trainer_that_is_not_found_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", str(TRAINERS))
    write_model(tmp_path, trainer="nnUNetTrainer_SSLProbe", levels="decoder", head="linear")
    monkeypatch.delenv("nnUNet_extTrainer")
    with pytest.raises(UserError, match=r"nnU-Net cannot load .*nnUNetTrainer_SSLProbe.*nnssl_doctor"):
        read_model(tmp_path, "0", FINAL)


def test_read_model__weights_of_another_network_are_a_sentence(tmp_path: Path) -> None:
    file = write_model(tmp_path) / "fold_0" / FINAL
    content = torch.load(file, weights_only=False)
    del content["network_weights"]["decoder.seg_layers.0.bias"]
    torch.save(content, file)
    with pytest.raises(UserError, match=r"nnU-Net cannot load .*decoder.seg_layers.0.bias"):
        read_model(tmp_path, "0", FINAL)


def test_read_model__takes_off_what_compiling_wraps_around(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_compile", "true")
    network = read_model(write_model(tmp_path), "0", FINAL).network
    assert type(network).__name__ == "PlainConvUNet" and not network.training


OLD_TRAINER = """
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

class nnUNetTrainer_OfBefore(nnUNetTrainer):
    @staticmethod
    def build_network_architecture(architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import,
                                   num_input_channels, num_output_channels, enable_deep_supervision=True):
        return get_network_from_plans(architecture_class_name, arch_init_kwargs, arch_init_kwargs_req_import,
                                      num_input_channels, num_output_channels, True, enable_deep_supervision)
"""


def test_load_folds__gives_what_nnunets_own_loading_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trainers").mkdir()
    (tmp_path / "trainers" / "of_before.py").write_text(OLD_TRAINER)
    monkeypatch.setenv("nnUNet_extTrainer", str(tmp_path / "trainers"))
    for trainer in ("nnUNetTrainer", "nnUNetTrainer_OfBefore"):
        folder = tmp_path / trainer
        for fold in ("0", "all"):
            write_model(folder, "ResidualEncoderUNet", fold=fold, axes=(0, 2))
            file = folder / f"fold_{fold}" / FINAL
            content = torch.load(file, weights_only=False)
            torch.save({**content, "trainer_name": trainer, "_best_ema": np.float64(0.5)}, file)
        ours, stock = (nnUNetPredictor(device=torch.device("cpu")) for _ in range(2))
        load_folds(ours, folder, ["0", "all"], FINAL)
        stock.initialize_from_trained_model_folder(str(folder), (0, "all"), FINAL)
        for name in ("dataset_json", "trainer_name", "allowed_mirroring_axes"):
            assert getattr(ours, name) == getattr(stock, name)
        assert ours.plans_manager.plans == stock.plans_manager.plans
        for own, expected in zip(ours.list_of_parameters, stock.list_of_parameters, strict=True):
            assert own.keys() == expected.keys() and all(torch.equal(own[k], expected[k]) for k in own)
        image = torch.randn(1, 1, *PATCH)
        with torch.no_grad():
            assert torch.equal(ours.network.eval()(image), stock.network.eval()(image))


@pytest.mark.parametrize("trainer", ["nnUNetTrainer", "nnUNetTrainer_PartialLabels"])
def test_read_model__calls_nothing_that_plans_name(
    trainer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("nnUNet_extTrainer", str(TRAINERS))
    folder, marker = write_model(tmp_path / "model", trainer=trainer), tmp_path / "called"
    file = folder / "plans.json"
    file.write_text(json.dumps(with_command(json.loads(file.read_text()), marker)))
    with pytest.raises(UserError, match=rf"the plans in .*model/plans.json name {SAID}"):
        read_model(folder, "0", FINAL)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("key", "name"), [("label_manager", "torch"), ("resampling_fn_probabilities", "recursive_find_python_class")]
)
def test_read_model__looks_at_the_other_names_too(key: str, name: str, tmp_path: Path) -> None:
    file = write_model(tmp_path) / "plans.json"
    plans = json.loads(file.read_text())
    (plans if key == "label_manager" else plans["configurations"]["3d_fullres"])[key] = name
    file.write_text(json.dumps(plans))
    with pytest.raises(UserError, match=rf"plans.json: .*{key}: is no .*'{name}'"):
        read_model(tmp_path, "0", FINAL)


def test_read_model__runs_nothing_that_a_checkpoint_hides(tmp_path: Path) -> None:
    folder, marker = write_model(tmp_path / "model"), tmp_path / "called"
    hide_command_in(folder / "fold_0" / FINAL, marker)
    with pytest.raises(UserError, match=rf"fold_0/{FINAL} is not opened.*system"):
        read_model(folder, "0", FINAL)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trainer_name": "torch"}, r"'torch' is no trainer.*nnssl_doctor"),  # what nnU-Net's modules import
        ({"trainer_name": 3}, r"3 is no trainer"),
        ({"init_args": {"configuration": "3d_other"}}, r"3d_other is not in the plans"),
        ({"init_args": {}}, r"has no configuration.*-chk"),
        ({"init_args": None}, r"has no configuration.*-chk"),
    ],
)
def test_read_model__odd_entries_are_a_sentence(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = write_model(tmp_path) / "fold_0" / FINAL
    torch.save({**torch.load(file, weights_only=False), **change}, file)
    with pytest.raises(UserError, match=said):
        read_model(tmp_path, "0", FINAL)
