from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nnssl.networks.stunet import STUNetPyramid
from tests.finetuning.plans import small_plans
from tests.interchange.files import assert_same_maps, imported, nnunet_checkpoint, randomised, saved

STRIDES = [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2], [2, 2, 2], [1, 1, 2]]  # of the published plans
SMALL: dict[str, Any] = {"dims": [4, 4, 6, 6, 8, 8], "depth": [2, 2, 1, 1, 1, 2]}


@pytest.mark.parametrize("container", ["state_dict", "network_weights"])
def test_stunet__the_imported_network_gives_the_same_maps(
    container: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = randomised(STUNetPyramid(1, **SMALL, strides=STRIDES, levels="decoder"))
    state = source.state_dict() | {"seg_outputs.0.weight": torch.ones(3, 8, 1, 1, 1)}
    run = imported(saved({container: state, "epoch": 4000}, tmp_path / "w.model"), tmp_path, monkeypatch)
    assert run.about["tensors_mapped"] == len(state) - 1 and run.about["tensors_left"] == 1
    assert run.about["axes"] == "zyx" and run.about["title"] == "STU-Net of width 4"
    plans = json.loads((run.folder / "plans.json").read_text())["configurations"]["3d_fullres"]
    assert plans["architecture"]["arch_kwargs"] == SMALL | {"strides": STRIDES}
    assert plans["normalization_schemes"] == ["ZScoreNormalization"]
    if container == "state_dict":
        assert_same_maps(run.folder, source, (16, 32, 64))


def test_stunet__a_model_of_the_authors_trainer_keeps_its_plans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plans name PlainConvUNet with fewer stages, and the trainer built an STU-Net of six."""
    strides = [[1, 1, 1], [1, 2, 2], [2, 2, 2], *[[1, 1, 1]] * 3]
    plans = small_plans(dataset="Dataset222_Organs", spacing=[3.0, 0.8, 0.8])
    source = randomised(STUNetPyramid(1, **SMALL, strides=strides, levels="decoder"))
    content = nnunet_checkpoint(plans, source) | {"trainer_name": "STUNetTrainer_small_ft"}
    run = imported(saved(content, tmp_path / "w"), tmp_path, monkeypatch)
    assert run.about["family"] == "stunet" and run.folder.parent.name == "nnssl_imported__nnUNetPlans__3d_fullres"
    kept = json.loads((run.folder / "plans.json").read_text())["configurations"]["3d_fullres"]
    assert kept["spacing"] == [3.0, 0.8, 0.8] and kept["normalization_schemes"] == ["CTNormalization"]
    assert kept["architecture"]["arch_kwargs"]["strides"] == strides
    assert_same_maps(run.folder, source, (8, 16, 16))
