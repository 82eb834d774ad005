"""The trainers inside nnU-Net's own classes; the commands themselves are run in tests/test_readme.py."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nnssl.core.errors import UserError
from nnssl.data.plan_and_preprocess import plan_and_preprocess
from tests.finetuning.flare import copy_folders, set_folders
from tests.phantoms import write_ct_dataset
from tests.pretrainings import write_pretraining

CPU = torch.device("cpu")
FAMILIES = ("Vox2vec", "SSL")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """nnU-Net's folders with a labelled dataset and the checkpoint of a pretraining on another one."""
    root = tmp_path_factory.mktemp("nnunet")
    with pytest.MonkeyPatch.context() as patch:
        set_folders(patch, root)
        write_ct_dataset(root / "raw", 17, "Target", 5, shape=(20, 32, 32), labelled=True)
        file = write_ct_dataset(root / "raw", 18, "Ignored", 5, shape=(20, 32, 32), labelled=True) / "dataset.json"
        file.write_text(file.read_text().replace("spine", "ignore"))
        plan_and_preprocess([17, 18], preset="nnsslPlans_tiny", num_processes=1, show_progress=False)
    plans = {}
    for dataset, name in (("Dataset017_Target", "nnsslPlans_tiny"), ("Dataset018_Ignored", "nnsslPlans_tinyFrom17")):
        plans = json.loads((root / "preprocessed" / dataset / f"{name}.json").read_text())
        configuration = plans["configurations"]["3d_fullres"]
        configuration["patch_size"] = [16, 24, 20]  # 20 is no multiple of the total stride of 8
        configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 6, 8, 8]
        (root / "preprocessed" / dataset / "nnsslPlans_tiny.json").write_text(json.dumps(plans))
    plans["configurations"]["3d_fullres"]["patch_size"] = [16, 24, 24]
    write_pretraining(root / "results", plans | {"dataset_name": "Dataset500_Source"})
    yield root


@pytest.fixture
def folders(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`copy_folders` of what is prepared once."""
    return copy_folders(prepared, tmp_path, monkeypatch)


def _make(
    folders: Path,
    name: str,
    fold: int | str = 0,
    continued: bool = False,
    dataset: str = "Dataset017_Target",
    **dataset_json: Any,
) -> Any:
    """A trainer as `nnUNetv2_train` makes it."""
    from nnssl.core.trainer_search import find_trainer

    home = folders / "preprocessed" / dataset
    plans = json.loads((home / "nnsslPlans_tiny.json").read_text())
    content = json.loads((home / "dataset.json").read_text()) | dataset_json
    trainer_class = find_trainer(f"nnUNetTrainer_{name}")
    return trainer_class(
        plans=plans | {"continue_training": continued}, configuration="3d_fullres", fold=fold, dataset_json=content,
        device=CPU,
    )  # fmt: skip


def _batch(trainer: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, trainer.label_manager.num_segmentation_heads, (2, 1, 16, 24, 20)).astype(np.float32)
    return {"data": torch.from_numpy(rng.normal(size=(2, 1, 16, 24, 20)).astype(np.float32)),
            "target": torch.from_numpy(labels)}  # fmt: skip


def _state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def _log(trainer: Any) -> str:
    return Path(trainer.log_file).read_text()


def _forget_the_pretraining(folders: Path) -> None:
    shutil.rmtree(folders / "results" / "Dataset500_Source")


@pytest.mark.parametrize("name", [f"{f}{kind}" for f in FAMILIES for kind in ("LinearProbe", "Probe")])
def test_probe__trains_the_head_and_not_a_bit_of_the_backbone(folders: Path, name: str) -> None:
    trainer = _make(folders, name)
    trainer.on_train_start()
    module = trainer.network_module
    backbone, head = _state(module.backbone), _state(module.head)
    trainer.on_train_epoch_start()
    for _ in range(2):
        trainer.train_step(next(trainer.dataloader_train))
    assert _same(_state(module.backbone), backbone)
    assert not _same(_state(module.head), head)
    in_optimiser = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert in_optimiser == {id(p) for p in module.head.parameters()}
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(3e-4)
    trained = sum(p.numel() for p in module.head.parameters())
    assert f"{trained:,} trainable parameters, 0 of them among the" in _log(trainer)
    assert "loaded:" in _log(trainer)


def test_probe__holds_the_pretrained_values(folders: Path) -> None:
    trainer = _make(folders, "Vox2vecProbe")
    trainer.initialize()
    (checkpoint,) = (folders / "results").glob("Dataset500_Source/*/*/checkpoint_final.pth")
    state = torch.load(checkpoint, weights_only=True)["method_state"]
    for name, tensor in trainer.network_module.backbone.used_tensors().items():
        assert torch.equal(tensor, state[f"backbone.{name}"])
    record = json.loads((Path(trainer.output_folder) / "nnssl_transfer.json").read_text())
    assert record["checkpoint"] == checkpoint.relative_to(folders / "results").as_posix()
    assert record["report"]["loaded"]


def test_nothing_is_mirrored__in_training_or_prediction(folders: Path) -> None:
    from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform

    trainer = _make(folders, "Vox2vecLinearProbe")
    trainer.on_train_start()
    transforms = trainer.dataloader_train.data_loader.transforms.transforms
    assert not any(isinstance(transform, MirrorTransform) for transform in transforms)
    file = Path(trainer.output_folder) / "checkpoint.pth"
    trainer.save_checkpoint(str(file))
    assert torch.load(file, weights_only=False)["inference_allowed_mirroring_axes"] is None


def test_predictor__builds_the_same_network_without_the_pretraining(folders: Path) -> None:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trainer = _make(folders, "Vox2vecProbe")
    trainer.run_training()
    _forget_the_pretraining(folders)
    predictor = nnUNetPredictor(device=CPU, perform_everything_on_device=False)
    predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,))
    image = torch.randn(1, 1, 16, 24, 20)
    with torch.no_grad():
        expected = trainer.network.eval()(image)
        assert torch.equal(predictor.network.eval()(image), expected)


def test_continue__needs_no_pretraining_and_ends_at_the_same_place(folders: Path) -> None:
    trainer = _make(folders, "Vox2vecFinetune")
    trainer.initialize()
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    _forget_the_pretraining(folders)
    again = _make(folders, "Vox2vecFinetune", continued=True)
    again.load_checkpoint(str(Path(again.output_folder) / "checkpoint_latest.pth"))
    assert _same(_state(again.network_module), _state(trainer.network_module))
    assert again.plans_manager.plans["nnssl"]["network"] == trainer.plans_manager.plans["nnssl"]["network"]


def test_finetune__thaws_the_backbone_after_a_third(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnssl_num_epochs", "3")
    monkeypatch.setenv("nnssl_num_iterations_per_epoch", "50")
    trainer = _make(folders, "Vox2vecFinetune")
    trainer.initialize()
    backbone = _state(trainer.network_module.backbone)
    rates = []
    for epoch, iteration in ((0, 0), (0, 49), (1, 0), (1, 1), (1, 2), (1, 3), (1, 4), (2, 49)):
        trainer.current_epoch = epoch
        trainer.on_train_epoch_start()
        trainer._iteration = iteration
        trainer.train_step(_batch(trainer))
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])
        assert _same(_state(trainer.network_module.backbone), backbone) == (epoch == 0)
    assert rates[:2] == [[pytest.approx(3e-4)]] * 2  # the backbone is not in the optimiser
    expected = [3e-5, 6e-5, 1.2e-4, 2.4e-4, 3e-4, 3e-4]
    assert rates[2:] == [[pytest.approx(3e-4), pytest.approx(rate)] for rate in expected]
    assert trainer.network_module.backbone.training


def test_finetune__goes_on_with_a_thawed_backbone(folders: Path) -> None:
    trainer = _make(folders, "SSLFinetune")
    trainer.initialize()
    trainer.current_epoch = 1
    trainer.on_train_epoch_start()
    trainer.train_step(_batch(trainer))
    assert len(trainer.optimizer.param_groups) == 2
    file = str(Path(trainer.output_folder) / "checkpoint_latest.pth")
    trainer.save_checkpoint(file)
    again = _make(folders, "SSLFinetune", continued=True)
    again.load_checkpoint(file)
    assert again.current_epoch == 2
    for both in (trainer, again):
        both.current_epoch = 1
        both.on_train_epoch_start()
        both.train_step(_batch(both))
    assert _same(_state(again.network_module), _state(trainer.network_module))
    frozen = torch.load(file, weights_only=False)
    frozen["optimizer_state"] = {"state": {}, "param_groups": frozen["optimizer_state"]["param_groups"][:1]}
    torch.save(frozen, file)
    again.load_checkpoint(file)  # what --val_best does with a checkpoint from before the thaw
    assert again.network_module.frozen


@pytest.mark.parametrize("method", ["pimpic", "voco"])
def test_unet__is_filled_from_the_encoder_and_trained_whole(folders: Path, method: str) -> None:
    plans = json.loads((folders / "preprocessed" / "Dataset017_Target" / "nnsslPlans_tiny.json").read_text())
    plans["configurations"]["3d_fullres"]["patch_size"] = [16, 24, 24]
    source = plans | {"dataset_name": "Dataset501_Encoder"}
    checkpoint = write_pretraining(folders / "results", source, method=method)
    home = folders / "preprocessed" / "Dataset017_Target" / "nnsslPlans_tiny.json"
    home.write_text(json.dumps(plans))
    trainer = _make(folders, {"pimpic": "PimpicFinetune", "voco": "VoCoFinetune"}[method])
    trainer.on_train_start()
    module = trainer.network_module
    state = torch.load(checkpoint, weights_only=True)["method_state"]
    for name, tensor in module.network.encoder.state_dict().items():
        assert torch.equal(tensor, state[f"backbone.network.encoder.{name}"])
    record = json.loads((Path(trainer.output_folder) / "nnssl_transfer.json").read_text())
    assert all(name.startswith("network.decoder.") for name in record["report"]["fresh"])
    before = _state(module)
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))
    after = _state(module)
    assert all(not torch.equal(tensor, before[name]) for name, tensor in after.items() if name.endswith("conv.weight"))
    expected = {"pimpic": (torch.optim.Adam, 1e-5), "voco": (torch.optim.AdamW, 3e-4)}[method]
    assert (type(trainer.optimizer), trainer.optimizer.param_groups[0]["lr"]) == expected
    assert trainer.inference_allowed_mirroring_axes == {"pimpic": None, "voco": (0, 1, 2)}[method]


@pytest.mark.parametrize("kind", ["LinearProbe", "Probe", "Finetune"])
def test_ssl__starts_from_the_decoder_levels_of_a_pixel_encoder(folders: Path, kind: str) -> None:
    _forget_the_pretraining(folders)
    plans = json.loads((folders / "preprocessed" / "Dataset017_Target" / "nnsslPlans_tiny.json").read_text())
    plans["configurations"]["3d_fullres"]["patch_size"] = [16, 24, 24]
    checkpoint = write_pretraining(folders / "results", plans | {"dataset_name": "Dataset501_Pixels"}, method="lapn")
    trainer = _make(folders, f"SSL{kind}")
    trainer.on_train_start()
    state = torch.load(checkpoint, weights_only=True)["method_state"]
    for name, tensor in trainer.network_module.pretrained_tensors().items():
        assert torch.equal(tensor, state[f"backbone.{name}"])
    record = json.loads((Path(trainer.output_folder) / "nnssl_transfer.json").read_text())
    assert record["method"] == "lapn" and record["levels"] == "decoder" and not record["report"]["adapted"]
    trainer.on_train_epoch_start()
    trainer.train_step(next(trainer.dataloader_train))


@pytest.mark.parametrize("family", FAMILIES)
def test_scratch__trains_everything_and_needs_no_checkpoint(folders: Path, family: str) -> None:
    _forget_the_pretraining(folders)
    trainer = _make(folders, f"{family}Scratch")
    trainer.initialize()
    before = _state(trainer.network_module)
    trainer.on_train_epoch_start()
    trainer.train_step(_batch(trainer))
    changed = [name for name, tensor in _state(trainer.network_module).items() if not torch.equal(tensor, before[name])]
    assert any(name.startswith("backbone.") for name in changed)
    assert any(name.startswith("head.") for name in changed)


def test_random__is_a_frozen_backbone_with_random_weights(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _forget_the_pretraining(folders)
    monkeypatch.setenv("nnssl_checkpoint", "random")
    trainer = _make(folders, "SSLLinearProbe")
    trainer.initialize()
    assert trainer.network_module.frozen
    assert "Backbone from random" in _log(trainer)
    assert trainer.plans_manager.plans["nnssl"]["checkpoint"] == "random"


@pytest.mark.parametrize("kind", ["regions", "ignore"])
def test_labels__of_every_kind_of_nnunet(folders: Path, kind: str) -> None:
    regions: dict[str, Any] = {"labels": {"background": 0, "both": [1, 2], "spine": 2}, "regions_class_order": [1, 2]}
    if kind == "regions":
        trainer = _make(folders, "Vox2vecProbe", **regions)
    else:
        trainer = _make(folders, "Vox2vecProbe", dataset="Dataset018_Ignored")
    trainer.run_training()
    assert trainer.current_epoch == 2
    assert np.isfinite(trainer.logger.get_value("train_losses", step=-1))


def test_fold_all__works(folders: Path) -> None:
    trainer = _make(folders, "SSLLinearProbe", fold="all")
    trainer.run_training()
    assert (Path(trainer.output_folder) / "checkpoint_final.pth").is_file()


def test_another_architecture__is_an_error_that_names_shapes_and_the_fix(folders: Path) -> None:
    file = folders / "preprocessed" / "Dataset017_Target" / "nnsslPlans_tiny.json"
    file.write_text(file.read_text().replace("[4, 6, 8, 8]", "[4, 6, 8, 10]"))
    with pytest.raises(UserError, match=r"another network.*\(8,.*\) in the checkpoint, \(10,.*nnssl_transfer -s 500"):
        _make(folders, "SSLUNetFinetune").initialize()


def test_missing_block__is_an_error_at_prediction(folders: Path) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    trainer = _make(folders, "Vox2vecProbe")
    plans = PlansManager({**trainer.plans_manager.plans, "nnssl": {}})
    with pytest.raises(UserError, match=r"plans.json that the training wrote"):
        trainer.build_network_architecture(plans, trainer.configuration_manager, 1, 3)


def test_orientation__of_the_targets_volumes_is_compared(folders: Path) -> None:
    (checkpoint,) = (folders / "results").glob("Dataset500_Source/*/*/checkpoint_final.pth")
    content = torch.load(checkpoint, weights_only=True)
    torch.save(content | {"orientation": "RAS"}, checkpoint)
    trainer = _make(folders, "Vox2vecProbe")
    trainer.initialize()
    log = _log(trainer)
    assert "WARNING: images are oriented" in log and "(RAS): case_001 (LPS), " in log


def test_mixture__is_refused_before_anything_is_lost(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = _make(folders, "Vox2vecProbe")
    trainer.initialize()
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    monkeypatch.setenv("nnssl_checkpoint", "random")
    with pytest.raises(UserError, match="holds a training that started from"):
        _make(folders, "Vox2vecProbe").initialize()
