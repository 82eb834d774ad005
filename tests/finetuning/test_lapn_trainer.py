"""nnUNetTrainer_LAPN inside nnU-Net's own classes, on the dataset of tests/finetuning/flare.py."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform

from nnssl.core.errors import UserError
from nnssl.finetuning.encodings import EncodingsTrainer
from nnssl.networks.two_stems import TwoStems
from tests.finetuning.flare import SOURCE, batch_of, log_of, make_trainer, read_plans, same, source_plans, state_of
from tests.finetuning.half_annotated import NAME, SHAPE
from tests.pretrainings import write_pretraining


def _forget_the_pretraining(root: Path) -> None:
    shutil.rmtree(root / "results" / SOURCE)


def _checkpoint(root: Path) -> Path:
    (path,) = (root / "results" / SOURCE).glob("*/*/checkpoint_final.pth")
    return path


def test_lapn__loads_the_whole_encoder_and_never_changes_it(flare: Path) -> None:
    trainer = make_trainer(flare, "LAPN")
    trainer.on_train_start()
    module = trainer.network_module
    state = torch.load(_checkpoint(flare), weights_only=True)["method_state"]
    for name, tensor in module.pretrained_tensors().items():
        assert torch.equal(tensor, state[name])
    record = json.loads((Path(trainer.output_folder) / "nnssl_transfer.json").read_text())
    report = record["report"]
    assert set(report["loaded"]) == set(module.pretrained_tensors()) and not report["adapted"]
    assert all(name.startswith("network.") for name in report["fresh"])
    left = {name.split(".")[0] for name in report["unused"]}
    assert left == {"backbone", "key_network", "queue"}  # of the backbone: its segmentation layers
    assert all("seg_layers" in name for name in report["unused"] if name.startswith("backbone."))
    before, unet = state_of(module.pixels), state_of(module.network)
    trainer.on_train_epoch_start()
    for _ in range(2):
        trainer.train_step(next(trainer.dataloader_train))
    assert same(state_of(module.pixels), before) and not module.pixels.training
    changed = state_of(module.network)
    assert all(not torch.equal(changed[n], unet[n]) for n in unet if n.endswith("conv.weight") and "seg" not in n)
    inside = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert inside == {id(p) for p in module.network.parameters()}
    assert f"{sum(p.numel() for p in module.network.parameters()):,} trainable parameters, 0 of them" in log_of(trainer)


def test_lapn__is_the_papers_set_up(flare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch"):
        monkeypatch.delenv(f"nnssl_{name}")
    trainer = make_trainer(flare, "LAPN")
    trainer.initialize()
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch) == (1000, 250)
    assert isinstance(trainer.optimizer, torch.optim.Adam) and trainer.optimizer.param_groups[0]["weight_decay"] == 0
    rates = []
    for epoch in (0, 500, 999):
        trainer.lr_scheduler.step(epoch)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates[:2] == [pytest.approx(1e-4), pytest.approx(5e-5)] and 0 < rates[2] < 1e-9
    stems = [m for m in trainer.network.modules() if isinstance(m, TwoStems)]
    assert len(stems) == 1 and trainer.network.decoder.deep_supervision
    row = trainer.annotated(["case_000", "case_001"]).tolist()
    assert row == [[True, True, True], [True, True, False]]  # partial labels


def test_lapn__augments_without_mirroring_or_not_at_all(flare: Path) -> None:
    class Plain(EncodingsTrainer):
        method, augments = "lapn", False

    trainer = make_trainer(flare, "LAPN")
    trainer.on_train_start()
    kinds = {type(t) for t in trainer.dataloader_train.data_loader.transforms.transforms}
    assert SpatialTransform in kinds and MirrorTransform not in kinds
    assert trainer.inference_allowed_mirroring_axes is None
    plain = Plain(
        plans=read_plans(flare) | {"continue_training": False}, configuration="3d_fullres", fold=0,
        dataset_json=trainer.dataset_json, device=trainer.device,
    )  # fmt: skip
    plain.on_train_start()
    assert SpatialTransform not in {type(t) for t in plain.dataloader_train.data_loader.transforms.transforms}
    assert next(plain.dataloader_train)["data"].shape == (2, 1, *SHAPE)


def test_lapn__trains_predicts_and_continues_without_the_pretraining(
    flare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trainer = make_trainer(flare, "LAPN")
    trainer.run_training()
    _forget_the_pretraining(flare)
    model = Path(trainer.output_folder_base)
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), (0,))
    image = torch.randn(1, 1, *SHAPE)
    trainer.set_deep_supervision_enabled(False)
    with torch.no_grad():
        assert torch.equal(predictor.network.eval()(image), trainer.network.eval()(image))
    logits = predictor.predict_sliding_window_return_logits(torch.randn(1, 14, 30, 26))
    assert logits.shape == (3, 14, 30, 26)

    monkeypatch.setenv("nnssl_num_epochs", "3")
    again = make_trainer(flare, "LAPN", continued=True)
    again.load_checkpoint(str(model / "fold_0" / "checkpoint_final.pth"))
    assert same(state_of(again.network), state_of(trainer.network))
    again.run_training()
    assert again.current_epoch == 3 and same(state_of(again.network.pixels), state_of(trainer.network.pixels))


def test_lapn__takes_the_pretrainings_own_network(flare: Path) -> None:
    plans = read_plans(flare)
    architecture = {
        "network_class_name": "nnssl.networks.lapn_unet.LapnUNet",
        "arch_kwargs": {"channels": [4, 6, 8], "num_res_units": 1, "encoding_channels": 64,
                        "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]]},
        "_kw_requires_import": [],
    }  # fmt: skip
    plans["configurations"]["3d_fullres"]["architecture"] = architecture
    _forget_the_pretraining(flare)
    write_pretraining(flare / "results", plans | {"dataset_name": SOURCE}, method="lapn")
    trainer = make_trainer(flare, "LAPN", plans=plans)
    trainer.initialize()
    trainer.train_step(batch_of(trainer, ["case_000", "case_001"]))
    plans["configurations"]["3d_fullres"]["architecture"] = architecture | {
        "network_class_name": "nnssl.networks.monai_unet.MonaiUNet",
        "arch_kwargs": {"channels": [4, 6, 8], "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]]},
    }
    one = make_trainer(flare, "LAPN", plans=plans)
    one.initialize()
    assert not one.enable_deep_supervision
    one.train_step(batch_of(one, ["case_000", "case_001"]))


def test_lapn__refuses_other_pretrainings(flare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sam = write_pretraining(flare / "results", source_plans(flare) | {"dataset_name": "Dataset501_S"}, method="sam")
    voxels = write_pretraining(flare / "results", source_plans(flare) | {"dataset_name": "Dataset502_V"})
    monkeypatch.setenv("nnssl_checkpoint", str(sam))
    with pytest.raises(UserError, match=r"with sam, and nnUNetTrainer_LAPN is for lapn: .*nnUNetTrainer_SSLEncod"):
        make_trainer(flare, "LAPN").initialize()
    trainer = make_trainer(flare, "SSLEncodings")
    trainer.initialize()
    assert trainer.plans_manager.plans["nnssl"]["method"] == "sam"
    monkeypatch.setenv("nnssl_checkpoint", str(voxels))
    with pytest.raises(UserError, match="encodes no single pixels"):
        make_trainer(flare, "SSLEncodings").initialize()
    monkeypatch.setenv("nnssl_checkpoint", "random")
    with pytest.raises(UserError, match=r"random weights are asked for; train nnUNetTrainer_LAPNScratch"):
        make_trainer(flare, "LAPN").initialize()


def test_lapn__warns_of_another_spacing(flare: Path) -> None:
    _forget_the_pretraining(flare)
    write_pretraining(flare / "results", source_plans(flare, spacing=[3.0, 1.5, 1.5]), method="lapn")
    trainer = make_trainer(flare, "LAPN")
    trainer.initialize()
    assert re.search(r"WARNING: the spacing of \S+, 1.5 x 1.5 x 1.5 mm, .* 3 x 1.5 x 1.5 mm", log_of(trainer))


def test_lapn__needs_its_plans_at_prediction(flare: Path) -> None:
    trainer = make_trainer(flare, "LAPN")
    with pytest.raises(UserError, match="do not say how the network is built"):
        trainer.build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 1, 3)
    assert NAME in trainer.output_folder
