from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nnssl.deployment.model_folder import read_model
from nnssl.errors import UserError
from tests.deployment.models import TRAINERS, write_model

FINAL = "checkpoint_final.pth"


def test_read_model__what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*nowhere; -m wants the folder of a training"):
        read_model(tmp_path / "nowhere", "0", FINAL)
    with pytest.raises(UserError, match=r"has no plans.json; -m wants the folder that holds it"):
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
