"""LAPN's workflow in small: partly annotated cases, volumes without labels, and a finished `lapn` pretraining."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nnssl_trainers
from nnssl.finetuning import unlabelled
from tests.finetuning.half_annotated import NAME, PLANS, SHAPE, SPACING, organs, prepare, write_half_annotated
from tests.phantoms import write_volume
from tests.pretrainings import write_pretraining

CPU = torch.device("cpu")
FOLDERS = ("raw", "preprocessed", "results")
SOURCE = "Dataset500_Source"
UNLABELLED = ("case_000", "un_1")  # the first is also the name of a labelled case


def set_folders(patch: pytest.MonkeyPatch, root: Path) -> None:
    for name in FOLDERS:
        (root / name).mkdir(exist_ok=True)
        patch.setenv(f"nnUNet_{name}", str(root / name))


def write_flare(root: Path) -> None:
    """Fill the folders, which are in the environment."""
    raw = write_half_annotated(root / "raw")
    for number, name in enumerate(UNLABELLED):
        hu, _ = organs(number, np.random.default_rng((18, number)))
        write_volume(raw / "imagesUn" / f"{name}_0000.nii.gz", hu, SPACING)
    prepare(root / "preprocessed", features=(4, 6, 8))
    write_pretraining(root / "results", source_plans(root), method="lapn")


def source_plans(root: Path, **configuration: Any) -> dict[str, Any]:
    """Plans of the pretraining: one stage more than the target's, so that its patches have to be padded."""
    plans = read_plans(root) | {"dataset_name": SOURCE}
    made = plans["configurations"]["3d_fullres"]
    made["patch_size"] = [16, 24, 24]
    made["architecture"]["arch_kwargs"] |= {
        "n_stages": 4, "features_per_stage": [4, 6, 8, 8], "kernel_sizes": [[3, 3, 3]] * 4,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * 3, "n_conv_per_stage": [1] * 4, "n_conv_per_stage_decoder": [1] * 3,
    }  # fmt: skip
    made.update(configuration)
    return plans


def read_plans(root: Path, name: str = PLANS) -> dict[str, Any]:
    return json.loads((root / "preprocessed" / NAME / f"{name}.json").read_text())


def copy_folders(prepared: Path, root: Path, patch: pytest.MonkeyPatch) -> Path:
    """A copy for one test, in the environment, with quick runs."""
    shutil.copytree(prepared, root, dirs_exist_ok=True)
    set_folders(patch, root)
    patch.setenv("nnUNet_n_proc_DA", "0")
    patch.setattr(unlabelled, "default_processes", lambda: 1)  # a process of its own would import torch anew
    patch.setenv("nnUNet_extTrainer", str(Path(nnssl_trainers.__file__).parent))
    for name, value in (("num_epochs", 2), ("num_iterations_per_epoch", 2), ("num_val_iterations_per_epoch", 1)):
        patch.setenv(f"nnssl_{name}", str(value))
    return root


def make_trainer(
    root: Path, name: str, continued: bool = False, plans: dict[str, Any] | None = None, fold: int = 0, **more: Any
) -> Any:
    """A trainer as `nnUNetv2_train` makes it; keywords replace entries of dataset.json."""
    from nnssl.core.trainer_search import find_trainer

    content = json.loads((root / "preprocessed" / NAME / "dataset.json").read_text()) | more
    torch.manual_seed(0)
    np.random.seed(0)
    return find_trainer(f"nnUNetTrainer_{name}")(
        plans=(plans or read_plans(root)) | {"continue_training": continued}, configuration="3d_fullres", fold=fold,
        dataset_json=content, device=CPU,
    )  # fmt: skip


def finish(trainer: Any) -> Path:
    """Write the model folder of a training that never ran, as far as prediction reads it; returns it."""
    if not trainer.was_initialized:
        trainer.initialize()
    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    model = Path(trainer.output_folder_base)
    (model / "plans.json").write_text(json.dumps(trainer.plans_manager.plans))
    (model / "dataset.json").write_text(json.dumps(trainer.dataset_json))
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
    return model


def batch_of(trainer: Any, keys: list[str]) -> dict[str, Any]:
    """Random patches and labels in nnU-Net's format; the keys say which case each is of."""
    rng = np.random.default_rng(1)
    heads = trainer.label_manager.num_segmentation_heads
    target = torch.from_numpy(rng.integers(0, heads, (len(keys), 1, *SHAPE)).astype(np.float32))
    data = torch.from_numpy(rng.normal(size=(len(keys), 1, *SHAPE)).astype(np.float32))
    deep = trainer.enable_deep_supervision
    return {"data": data, "target": [target, target[..., ::2, ::2, ::2]] if deep else target, "keys": keys}


def state_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def log_of(trainer: Any) -> str:
    return Path(trainer.log_file).read_text()
