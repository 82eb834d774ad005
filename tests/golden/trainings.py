"""Transfers to a labelled dataset, trainings by nnU-Net's trainers, and what their models predict."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nnssl
from tests.golden.compare import norms, plain, summary, tensors
from tests.golden.runs import keys_of, optimiser
from tests.golden.world import CONFIGURATION, PRESET, TARGET, World, patch_of, seed

CPU = torch.device("cpu")
_ENCODINGS = ("nnUNetTrainer_LAPN", "nnUNetTrainer_SSLEncodings")  # which need a pretraining
# At a low rate, for the reason that `tests.golden.world` states; the trainers' own rates are recorded as theirs.
_QUICK = {"nnssl_num_epochs": "3", "nnssl_num_iterations_per_epoch": "1", "nnssl_initial_lr": "2e-5"}
_SETTINGS = ("num_epochs", "num_iterations_per_epoch", "num_val_iterations_per_epoch", "initial_lr", "weight_decay",
             "oversample_foreground_percent", "enable_deep_supervision", "save_every", "batch_size")  # fmt: skip


@dataclass
class Trained:
    """A training of three steps: its trainer, losses and model folder."""

    trainer: Any
    losses: list[float]
    model: Path


def transfer(world: World, method: str) -> dict[str, Any]:
    """A pretraining, transferred to the labelled dataset, and three steps of the trainer that is proposed."""
    proposed = _transferred(world, method)
    plans = _plans(world, proposed.prepared.plans_name)
    trained = _trained(world, method)
    fold = Path(trained.trainer.output_folder)
    checkpoint = torch.load(fold / "checkpoint_final.pth", weights_only=False)
    record = _read(fold / "nnssl_transfer.json")
    configuration = plans["configurations"][CONFIGURATION]
    return {
        "proposed": dict(zip(("trainer", "plans"), _proposed(proposed.command), strict=True)),
        "also for stock trainers": proposed.stock_command is not None,
        "plans_keys": sorted(plans),
        "configuration_keys": sorted(configuration),
        "spacing": plain(configuration["spacing"]),
        "network_class_name": configuration["architecture"]["network_class_name"],
        "plans.nnssl": _relative(plans["nnssl"], world),
        "plans.nnssl of the model": _relative(_read(trained.model / "plans.json")["nnssl"], world),
        "record_keys": sorted(record),
        "report": {kind: _counted(names) for kind, names in record["report"].items()},
        "files": sorted(re.sub(r"training_log_.*", "training_log", file.name) for file in fold.iterdir()),
        "checkpoint_keys": keys_of(checkpoint),
        "losses": plain(trained.losses),
        "state": tensors(checkpoint["network_weights"]),
        "norms": plain(norms(checkpoint["network_weights"])),
        "optimiser": optimiser(checkpoint["optimizer_state"]),
    }


def trainer(world: World, name: str) -> dict[str, Any]:
    """Class path and recipe of a trainer, and the network that it makes of plans with random weights, if it can."""
    made = _make(world, name, _stock(world), {}, {})
    start = str(world.run("lapn") / "checkpoint_final.pth") if name in _ENCODINGS else "random"
    with world.environment("trainers", nnssl_checkpoint=start):
        made.initialize()
        *_, axes = made.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        rates = []
        for epoch in sorted({0, 1, made.num_epochs // 3 + 1, made.num_epochs // 2, made.num_epochs - 1}):
            made.lr_scheduler.step(epoch)
            rates.append([epoch, [group["lr"] for group in made.optimizer.param_groups]])
    return {
        "class": f"{type(made).__module__}.{type(made).__qualname__}",
        "settings": plain({key: getattr(made, key) for key in _SETTINGS}),
        "mirrors": plain({"training": axes, "prediction": made.inference_allowed_mirroring_axes}),
        "optimiser": {"class": type(made.optimizer).__name__, **optimiser(made.optimizer.state_dict())},
        "rates": plain(rates),
        "plans.nnssl": _relative(made.plans_manager.plans.get("nnssl"), world),
        "state": tensors(made.network.state_dict()),
        "norms": plain(norms(made.network.state_dict())),
    }


def steps(world: World, name: str) -> dict[str, Any]:
    """Three steps of a trainer that starts from no pretraining, with few annotated labels."""
    plans, annotated, teacher = _stock(world), {"annotated_labels": {"case_001": ["liver"]}}, {}
    if "Distill" in name:  # on the volumes of its teacher, whose label maps hold all labels
        plans, annotated = _plans(world, _transferred(world, "lapn").prepared.plans_name) | {"nnssl": {}}, {}
        teacher = {"nnssl_teacher": str(_trained(world, "lapn").model)}
    made = _make(world, name, plans, _QUICK, annotated)
    with world.environment("trainers", nnssl_checkpoint="random", **_QUICK, **teacher):
        if teacher:
            made.on_train_start()
        losses = _steps(made)
    return {"losses": plain(losses), "norms": plain(norms(made.network.state_dict()))}


def prediction(world: World, kind: str) -> dict[str, Any]:
    """What a model makes of one image: voxels of each class, and norms of the logits of one patch."""
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    model = _trained(world, {"probe": "vox2vec", "fine-tuning": "pimpic", "encodings": "lapn"}[kind]).model
    with world.environment("none"):
        predictor = nnUNetPredictor(device=CPU, allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(model), ("all",))
        image, properties = SimpleITKIO().read_images([str(world.image())])
        labels = predictor.predict_single_npy_array(image, properties)
        with torch.inference_mode():
            logits = predictor.network.eval()(patch_of(predictor.configuration_manager.patch_size))
    return {"trainer": predictor.trainer_name, "mirrors": plain(predictor.allowed_mirroring_axes),
            "voxels": _voxels(labels), "logits": _norm_by_class(logits.numpy())}  # fmt: skip


def onnx(world: World) -> dict[str, Any]:
    """The fine-tuned model as an ONNX file: its metadata, names, logits, and its prediction of one image."""
    import onnxruntime
    import SimpleITK as sitk

    model = _trained(world, "pimpic").model
    file, images, output = (world.root / name for name in ("model.onnx", "onnx_images", "onnx_output"))
    images.mkdir()
    (images / world.image().name).write_bytes(world.image().read_bytes())
    with world.environment("none"):
        nnssl.export_onnx(model, file, "all")
        nnssl.predict_onnx(images, output, [file], device="cpu", threads=1, num_processes_preprocessing=0,
                           num_processes_segmentation_export=0)  # fmt: skip
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    (logits,) = session.run(None, {"image": patch_of(session.get_inputs()[0].shape[2:]).numpy()})
    return {
        "inputs": {value.name: plain(value.shape[1:]) for value in session.get_inputs()},
        "outputs": {value.name: plain(value.shape[1:]) for value in session.get_outputs()},
        "metadata_keys": sorted(metadata),
        "metadata": {key: json.loads(metadata[f"nnssl.{key}"])
                     for key in ("configuration", "fold", "trainer_name", "mirroring_axes", "format")},
        "network_class_name": json.loads(metadata["nnssl.plans"])["configurations"][CONFIGURATION]["architecture"][
            "network_class_name"],
        "logits": _norm_by_class(logits),
        "files": sorted(path.name for path in output.iterdir()),
        "voxels": _voxels(sitk.GetArrayFromImage(sitk.ReadImage(str(output / "case_000.nii.gz")))),
    }  # fmt: skip


def _transferred(world: World, method: str) -> Any:
    def make() -> Any:
        world.run(method)
        with world.environment(method):
            return nnssl.transfer(500, 17, method=method, num_processes=1)

    return world.once(f"transfer {method}", make)


def _proposed(command: str) -> tuple[str, str]:
    """Trainer and plans of a line to type; the rest of it may change."""
    words = command.split()
    return words[words.index("-tr") + 1], words[words.index("-p") + 1]


def _trained(world: World, method: str) -> Trained:
    """The training that `transfer` proposes, as far as prediction needs it."""

    def make() -> Trained:
        name, plans = _proposed(_transferred(world, method).command)
        made = _make(world, name, _plans(world, plans), _QUICK, {}, method)
        with world.environment(method, **_QUICK):
            made.initialize()
            made.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
            losses = _steps(made)
            model = Path(made.output_folder_base)
            (model / "plans.json").write_text(json.dumps(made.plans_manager.plans))
            (model / "dataset.json").write_text(json.dumps(made.dataset_json))
            made.save_checkpoint(str(Path(made.output_folder) / "checkpoint_final.pth"))
        return Trained(made, losses, model)

    return world.once(f"training {method}", make)


def _make(
    world: World, name: str, plans: dict[str, Any], variables: Mapping[str, str], more: Mapping[str, Any],
    results: str = "trainers",
) -> Any:  # fmt: skip
    """A trainer as `nnUNetv2_train` makes it; `more` is for dataset.json, `variables` for the environment."""
    from nnssl.core.trainer_search import find_trainer

    content = _read(world.root / "preprocessed" / TARGET / "dataset.json") | dict(more)
    with world.environment(results, **variables):
        return find_trainer(name)(
            plans=plans | {"continue_training": False}, configuration=CONFIGURATION, fold="all", dataset_json=content,
            device=CPU,
        )  # fmt: skip


def _steps(made: Any) -> list[float]:
    """Losses of an epoch of one step, three times, each on the same patches."""
    if not made.was_initialized:
        made.initialize()
    patch = made.configuration_manager.patch_size
    target: Any = _labels(patch, made.label_manager.num_segmentation_heads)
    if made.enable_deep_supervision:
        scales = made._get_deep_supervision_scales()
        sizes = [[round(size * s) for size, s in zip(patch, scale, strict=True)] for scale in scales]
        target = [torch.nn.functional.interpolate(target, size, mode="nearest") for size in sizes]
    losses = []
    for epoch in range(3):
        made.current_epoch = epoch
        made.on_train_epoch_start()
        seed()
        batch = {"data": patch_of(patch, 2), "target": target, "keys": ["case_000", "case_001"]}
        losses.append(float(made.train_step(batch)["loss"]))
    return losses


def _stock(world: World) -> dict[str, Any]:
    """Plans that no pretraining made."""
    world.preprocessed(TARGET)
    return _plans(world, PRESET)


def _plans(world: World, name: str) -> dict[str, Any]:
    return _read(world.root / "preprocessed" / TARGET / f"{name}.json")


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def _relative(value: Any, world: World) -> Any:
    """The value without the folder that this recording is made in."""
    return json.loads(json.dumps(plain(value)).replace(str(world.root), "ROOT"))


def _labels(size: Any, heads: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(2).integers(0, heads, (2, 1, *size)).astype(np.float32))


def _counted(names: Mapping[str, int]) -> list[Any]:
    return [summary(names, "tensors"), sum(names.values())]


def _voxels(labels: np.ndarray) -> dict[str, int]:
    values, counts = np.unique(np.asarray(labels), return_counts=True)
    return {str(int(value)): int(count) for value, count in zip(values, counts, strict=True)}


def _norm_by_class(logits: np.ndarray) -> list[float]:
    """(1, classes, Z, Y, X) to a norm a class."""
    norm: list[float] = plain([float(v) for v in np.sqrt(np.square(logits.astype(np.float64)).sum(axis=(0, 2, 3, 4)))])
    return norm
