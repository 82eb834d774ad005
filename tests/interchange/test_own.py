"""Our own runs and exports as the source of an import: what they are is kept, nothing is taken for public weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from nnssl.checkpoints.files import load_checkpoint
from nnssl.checkpoints.origin import origin_of
from nnssl.core.errors import UserError
from nnssl.features.model import load_pretrained
from nnssl.interchange.exporting import export
from nnssl.networks.build import resolve_configuration, segmentation_of
from tests.finetuning.plans import small_plans
from tests.interchange.files import imported, nnunet_checkpoint, saved
from tests.interchange.test_exporting import FPN, RESIDUAL
from tests.pretrainings import tiny_plans, write_pretraining


@pytest.mark.parametrize(("architecture", "way"), [(FPN, "run"), (FPN, "safetensors"), (RESIDUAL, "nnssl")])
def test_own__is_imported_with_its_plans_and_licence(
    architecture: dict[str, Any], way: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An FPN3d has the names of vox2vec's public weights, whose axes are others."""
    plans = tiny_plans(architecture=architecture)
    checkpoint = write_pretraining(tmp_path / "made", plans, method="unet_mae")
    source = checkpoint if way == "run" else export(checkpoint, tmp_path / "out", way, licence="cc-by-nc-4.0")
    run = imported(source, tmp_path, monkeypatch)
    assert run.about["family"] == "nnssl" and run.about["levels"] == "decoder" and "He, K." in run.about["citation"]
    assert run.about["licence"] == (None if way == "run" else "cc-by-nc-4.0") and run.about["axes"] == "zyx"
    kept = json.loads((run.folder / "plans.json").read_text())
    for key in ("configurations", "foreground_intensity_properties_per_channel"):
        assert kept[key] == plans[key]
    own, other = (load_pretrained(path) for path in (checkpoint, run.folder))
    image = torch.randn(1, 1, 16, 16, 16)
    assert all(torch.equal(a, b) for a, b in zip(own(image), other(image), strict=True))
    assert own.orientation == other.orientation == "LPS"
    if way == "nnssl":
        with pytest.raises(UserError, match=r"-license mit leaves out terms of that \(nc\)"):
            export(run.folder, tmp_path / "lax", licence="mit")
        card = (export(run.folder, tmp_path / "again", "safetensors") / "README.md").read_text()
        assert "license: cc-by-nc-4.0" in card and "No commercial use." in card and "He, K." in card
        assert f"with the weights of {run.about['title']}" in card
        assert "self-supervised" not in card  # who imports does not know


def test_own__the_copy_for_stock_trainers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = export(write_pretraining(tmp_path / "made", tiny_plans(architecture=FPN)), tmp_path / "out", "nnunet")
    with pytest.raises(UserError, match=r"nnunet_weights.pth of nnssl.*give the checkpoint_final.pth"):
        imported(folder, tmp_path, monkeypatch)


def test_own__weights_trained_from_others_stay_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = {"title": "Theirs", "licence": "CC BY-NC-ND 4.0", "citation": "They (2020).", "derived": True}
    checkpoint = write_pretraining(tmp_path / "made", tiny_plans(architecture=FPN))
    content = torch.load(checkpoint, weights_only=True)
    run = imported(saved({**content, "origin": theirs}, tmp_path / "w"), tmp_path, monkeypatch)
    assert run.about["derived"] and "They (2020)." in run.about["citation"]
    with pytest.raises(UserError, match=r"licence cc-by-nc-nd-4\.0 lets nobody pass on"):
        export(run.folder, tmp_path / "out", "safetensors")
    with pytest.raises(UserError, match=r"origin\.licence: must be text"):
        load_checkpoint(saved({**content, "origin": {"licence": 5}}, tmp_path / "w"))


def test_own__a_fine_tuning_carries_the_licence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = small_plans("FPN3dUNet")
    plans["nnssl"] = {"origin": {"title": "Theirs", "licence": "CC BY-NC-ND 4.0", "derived": True}}
    network = segmentation_of(resolve_configuration(plans, "3d_fullres"), 2)
    model = saved(nnunet_checkpoint(plans, network), tmp_path / "made" / "checkpoint_final.pth")
    run = imported(model, tmp_path, monkeypatch)
    assert run.about["licence"] == "CC BY-NC-ND 4.0" and run.about["derived"]
    for trained in (model, run.folder):
        assert (origin_of(load_checkpoint(trained if trained == model else trained / model.name)) or {})["derived"]
        with pytest.raises(UserError, match="lets nobody pass on"):
            export(trained, tmp_path / "out", "safetensors", licence="mit")
