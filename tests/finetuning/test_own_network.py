"""A probe on plans of another network than the pretraining's: nothing but the target's stock plans is needed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch

from nnssl.networks.build import network_entries, resolve_configuration
from tests.finetuning.flare import CPU, NAME, log_of, make_trainer, read_plans, same, source_plans, state_of
from tests.pretrainings import write_pretraining

IMAGE = "case_000_0000.nii.gz"


def _pretraining(flare: Path) -> Path:
    """Of another number of stages, other strides, kernels and patch than the target's plans."""
    shutil.rmtree(flare / "results" / "Dataset500_Source")
    plans = source_plans(flare)
    plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"] |= {
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
    }
    return write_pretraining(flare / "results", plans, method="vox2vec")


def _predict(model: Path, flare: Path, output: Path) -> np.ndarray:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), ("0",))
    output.mkdir()
    image = str(flare / "raw" / NAME / "imagesTr" / IMAGE)
    predictor.predict_from_files_sequential([[image]], [str(output / "case_000")])
    return sitk.GetArrayFromImage(sitk.ReadImage(str(output / "case_000.nii.gz")))


def _zip_and_install(model: Path, flare: Path) -> None:
    """nnU-Net's exchange of a model, into the place that it came from."""
    from nnunetv2.model_sharing.model_export import export_pretrained_model
    from nnunetv2.model_sharing.model_import import install_model_from_zip_file

    trainer, plans, configuration = model.name.split("__")
    file = flare / "model.zip"
    export_pretrained_model(NAME, str(file), (configuration,), trainer, plans, (0,), strict=False)
    shutil.rmtree(model)
    install_model_from_zip_file(str(file))


def test_a_probe_trains_goes_on_predicts_and_is_shared(flare: Path) -> None:
    checkpoint = _pretraining(flare)
    trainer = make_trainer(flare, "Vox2vecProbe")
    trainer.run_training()
    assert "pretraining's own network" in log_of(trainer) and "nnssl_transfer -s 500 -t" in log_of(trainer)
    state = torch.load(checkpoint, weights_only=True)["method_state"]
    backbone = trainer.network_module.backbone
    assert backbone.strides[-1] == (4, 8, 8)
    assert all(torch.equal(tensor, state[f"backbone.{name}"]) for name, tensor in backbone.used_tensors().items())
    shutil.rmtree(checkpoint.parents[2])  # from here on the model needs nothing else
    again = make_trainer(flare, "Vox2vecProbe", continued=True)
    again.load_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    assert same(state_of(again.network_module), state_of(trainer.network_module))
    again.perform_actual_validation()
    assert (Path(again.output_folder) / "validation" / "summary.json").is_file()
    model = Path(trainer.output_folder_base)
    labels = _predict(model, flare, flare / "predicted")
    _zip_and_install(model, flare)
    assert np.array_equal(labels, _predict(model, flare, flare / "again"))


def test_on_plans_of_the_same_network_nothing_more_is_written(flare: Path) -> None:
    shutil.rmtree(flare / "results" / "Dataset500_Source")
    plans = read_plans(flare)
    write_pretraining(flare / "results", plans | {"dataset_name": "Dataset500_Source"}, method="vox2vec")
    trainer = make_trainer(flare, "SSLProbe")
    trainer.initialize()
    assert trainer.plans_manager.plans["nnssl"]["network"] == {
        "levels": "decoder", "head": "nonlinear", "intensity": None,
    }  # fmt: skip


def test_a_patch_of_one_cell_at_the_coarsest_level_is_padded(flare: Path) -> None:
    _pretraining(flare)
    plans = read_plans(flare)
    plans["configurations"]["3d_fullres"]["patch_size"] = [4, 8, 8]
    trainer = make_trainer(flare, "SSLLinearProbe", plans=plans)
    trainer.initialize()
    theirs = trainer.plans_manager.plans["nnssl"]["network"]["backbone"]
    assert theirs != network_entries(resolve_configuration(plans, "3d_fullres"))
    logits = trainer.network_module(torch.randn(2, 1, 4, 8, 8))
    assert logits.shape[2:] == (4, 8, 8) and bool(logits.isfinite().all())
