"""From imported weights to a training, its prediction by stock nnU-Net, a picture and a benchmark."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from nnssl.analysis.pca import visualize_pca
from nnssl.benchmarking.methods import read_methods, resolve
from nnssl.checkpoints.files import FINAL
from nnssl.networks.build import resolve_configuration, segmentation_of
from tests.finetuning.conftest import flare, flare_prepared
from tests.finetuning.flare import CPU, NAME, log_of, make_trainer, read_plans
from tests.interchange.files import imported, nnunet_checkpoint, randomised, saved

__all__ = ["flare", "flare_prepared"]  # the fixtures
IMAGE = "case_000_0000.nii.gz"


def _organs(flare: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, dict[str, torch.Tensor]]:
    """A model of nnU-Net with the target's own plans, imported; and its tensors."""
    plans = read_plans(flare) | {"dataset_name": "Dataset291_Organs"}
    network = randomised(segmentation_of(resolve_configuration(plans, "3d_fullres"), 5))
    run = imported(saved(nnunet_checkpoint(plans, network), flare / "w"), flare, monkeypatch, "Dataset901_Organs")
    monkeypatch.setenv("nnssl_checkpoint", str(run.folder))
    return run.folder, {k: v for k, v in network.state_dict().items() if "seg_layers" not in k}


def test_probe__starts_from_all_tensors(flare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, given = _organs(flare, monkeypatch)
    trainer = make_trainer(flare, "SSLLinearProbe")
    trainer.initialize()
    own = trainer.network_module.backbone.network.state_dict()
    assert all(torch.equal(own[name], tensor) for name, tensor in given.items())


def test_benchmark__takes_an_import_as_the_start_of_an_item(flare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = _organs(flare, monkeypatch)
    plans = read_plans(flare)
    (item,) = read_methods([f"organs=nnUNetTrainer_SSLLinearProbe,,{run}"], plans["plans_name"])
    environment = {k: v for k, v in os.environ.items() if k != "nnssl_checkpoint"}
    assert resolve(item, plans, "3d_fullres", environment).checkpoint == str((run / FINAL).resolve())


@pytest.mark.slow
def test_visualize__draws_the_features_of_an_import(flare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = _organs(flare, monkeypatch)
    visualize_pca(run, flare / "raw" / NAME / "imagesTr" / IMAGE, flare / "pca.png", level=1, device="cpu")
    assert (flare / "pca.png").stat().st_size > 1000


@pytest.mark.slow
def test_finetuning__trains_and_is_predicted_by_stock_nnunet(flare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    _, given = _organs(flare, monkeypatch)
    trainer = make_trainer(flare, "SSLUNetFinetune")
    trainer.run_training()
    assert "seg_layers" in log_of(trainer) and (Path(trainer.output_folder) / FINAL).is_file()
    trained = trainer.network_module.network.state_dict()
    assert trained.keys() >= given.keys() and not all(torch.equal(trained[k], v) for k, v in given.items())
    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(trainer.output_folder_base), ("0",))
    (flare / "out").mkdir()
    image = str(flare / "raw" / NAME / "imagesTr" / IMAGE)
    predictor.predict_from_files_sequential([[image]], [str(flare / "out" / "case_000")])
    labels = sitk.GetArrayFromImage(sitk.ReadImage(str(flare / "out" / "case_000.nii.gz")))
    assert labels.shape == sitk.GetArrayFromImage(sitk.ReadImage(image)).shape and np.isfinite(labels).all()
