"""What follows an import, for every network that only imported weights have: transfer, training, prediction."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import nnssl_trainers
from nnssl.finetuning.transfer_plans import transfer
from nnssl.networks.stunet import STUNetPyramid
from nnssl.networks.unet3d import UNet3DPyramid
from tests.interchange.files import imported, randomised, saved
from tests.interchange.swins import published_swin
from tests.phantoms import write_ct_dataset

CPU = torch.device("cpu")


def _monais(name: str, **options: Any) -> nn.Module:
    from monai.networks import nets

    network: nn.Module = getattr(nets, name)(**options)
    return network


def _under(prefix: str, network: nn.Module) -> dict[str, Any]:
    return {f"{prefix}{name}": tensor for name, tensor in randomised(network).state_dict().items()}


class Case(NamedTuple):
    content: Callable[[], dict[str, Any]]
    patch: tuple[int, int, int]


STUNET: dict[str, Any] = {"dims": [4] * 6, "depth": [1] * 6,
                          "strides": [[1, 1, 1], *[[2, 2, 2]] * 4, [1, 1, 2]]}  # fmt: skip
CASES = {
    "swinunetr": Case(lambda: {"net": _under("module.backbone.", published_swin(is_v2=False))}, (32, 32, 64)),
    "segresnet": Case(
        lambda: {"net": _under("module.", _monais("SegResNet", init_filters=8, blocks_down=(1, 1), blocks_up=(1,)))},
        (8, 8, 8),
    ),
    "segresnet_ds": Case(
        lambda: _under("", _monais("SegResNetDS", init_filters=4, blocks_down=(1, 1, 1))), (8, 16, 8)
    ),
    "unet3d": Case(
        lambda: {"net": _under("module.backbone.", UNet3DPyramid(base_channels=2, levels="decoder"))}, (16, 16, 16)
    ),
    "stunet": Case(
        lambda: {"state_dict": _under("", STUNetPyramid(**STUNET, levels="decoder"))}, (16, 32, 32)
    ),
}  # fmt: skip


_SLOW = ("swinunetr", "segresnet", "unet3d")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in _SLOW else n for n in CASES])
def test_import__transfer_train_and_predict(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    torch.manual_seed(0)
    run = imported(saved(CASES[name].content(), tmp_path / "weights"), tmp_path, monkeypatch)
    for variable, value in (
        ("nnUNet_n_proc_DA", "0"),
        ("nnUNet_extTrainer", str(Path(nnssl_trainers.__file__).parent)),
    ):
        monkeypatch.setenv(variable, value)
    write_ct_dataset(tmp_path / "raw", 17, "Target", 2, labelled=True, shape=(12, 16, 20), spacing=(4.0, 3.0, 3.0))
    transfer(900, 17, num_processes=1)
    home = tmp_path / "preprocessed" / "Dataset017_Target"
    (file,) = home.glob("nnsslPlans*From900_imported.json")
    plans = json.loads(file.read_text())
    source = json.loads((run.folder / "plans.json").read_text())
    for key in ("spacing", "normalization_schemes", "architecture"):
        assert plans["configurations"]["3d_fullres"][key] == source["configurations"]["3d_fullres"][key]
    plans["configurations"]["3d_fullres"]["patch_size"] = list(CASES[name].patch)
    dataset_json = json.loads((home / "dataset.json").read_text())
    trainer = recursive_find_trainer_class_by_name("nnUNetTrainer_SSLUNetFinetune")(
        plans | {"continue_training": False}, "3d_fullres", "all", dataset_json, device=CPU
    )
    trainer.initialize()
    given = torch.load(run.folder / "checkpoint_final.pth", weights_only=True)["method_state"]
    before = {n: t.detach().clone() for n, t in trainer.network.pretrained_tensors().items()}
    assert len(before) >= run.about["tensors_mapped"] > 20
    assert all(torch.equal(tensor, given[f"backbone.{n}"]) for n, tensor in before.items())
    image = torch.randn(2, 1, *CASES[name].patch)
    target = torch.ones(2, 1, *CASES[name].patch)
    trainer.current_epoch = 1
    trainer.on_train_epoch_start()
    loss = trainer.train_step({"data": image, "target": target})["loss"]
    after = trainer.network.pretrained_tensors()
    assert np.isfinite(loss) and any(not torch.equal(tensor, after[n]) for n, tensor in before.items())
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    model = Path(trainer.output_folder_base)  # with what `on_train_start` copies there
    (model / "dataset.json").write_text(json.dumps(dataset_json))
    (model / "plans.json").write_text(json.dumps(trainer.plans_manager.plans))
    predictor = nnUNetPredictor(device=CPU, perform_everything_on_device=False, use_mirroring=False)
    predictor.initialize_from_trained_model_folder(str(model), ("all",))
    logits = predictor.predict_sliding_window_return_logits(torch.randn(1, 9, *CASES[name].patch[1:]))
    assert logits.shape == (3, 9, *CASES[name].patch[1:]) and bool(logits.isfinite().all())
