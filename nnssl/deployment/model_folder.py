"""Trained networks of nnU-Net's model folders, loaded as `nnUNetv2_predict` does, but without calling foreign code."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl.core import VERSION
from nnssl.core.errors import UserError
from nnssl.core.files import read_json
from nnssl.core.names import check_name
from nnssl.core.plans_schema import PlansFile
from nnssl.core.schemas import DatasetFile
from nnssl.core.trainer_search import find_trainer
from nnssl.data.pool import quietly
from nnssl.data.trusted import read_nnunet_checkpoint, refuse_untrusted_names
from nnssl.deployment.session import Description
from nnssl.networks.build import any_configuration
from nnssl.networks.trusted import trusted_network


@dataclass(frozen=True)
class TrainedModel:
    """A network and what belongs to it.

    Args:
        network: in evaluation mode, on the CPU, without deep supervision.
        description: everything else that prediction needs.
        input_shape: channels and patch (C, Z, Y, X), or (C, Y, X) of a 2D configuration.
    """

    network: Any
    description: Description
    input_shape: tuple[int, ...]


def check_model_folder(folder: Path, folds: Sequence[str], checkpoint: str) -> None:
    """Raise UserError if `folder` is no model folder, or lacks these folds with this checkpoint."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; give -m the model folder of a training, named "
                        f"TRAINER__PLANS__CONFIGURATION")  # fmt: skip
    for name in ("plans.json", "dataset.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}; give -m the folder that holds it beside the fold_... folders "
                            f"of a training")  # fmt: skip
    read_json(folder / "plans.json", PlansFile)
    read_json(folder / "dataset.json", DatasetFile)
    check_name(checkpoint, "file", "-chk")
    for fold in folds:
        check_name(fold, "fold", "-f")
        if not (folder / f"fold_{fold}" / checkpoint).is_file():
            found = sorted(str(path.relative_to(folder)) for path in folder.glob("fold_*/*.pth"))
            raise UserError(f"{folder} has no fold_{fold}/{checkpoint}; choose with -f and -chk among: "
                            f"{', '.join(found) or 'nothing, no training has saved anything there yet'}")  # fmt: skip


@dataclass(frozen=True)
class Opened:
    """Content of a model folder; nothing of it has been called.

    Args:
        description: of the first fold.
        configuration: of the plans, with the full names of its classes.
        weights: of each fold.
    """

    description: Description
    configuration: dict[str, Any]
    weights: list[Any]


def open_folds(folder: Path, folds: Sequence[str], checkpoint: str) -> Opened:
    """Check and read a model folder; nothing of it is built or called.

    Raises:
        UserError: as `check_model_folder`; plans or checkpoints could run code, or a checkpoint is not nnU-Net's.
    """
    check_model_folder(folder, folds, checkpoint)
    plans, dataset_json = read_json(folder / "plans.json", PlansFile), read_json(folder / "dataset.json", DatasetFile)
    first, weights = _read_folds([folder / f"fold_{fold}" / checkpoint for fold in folds])
    name, fold = str(first["init_args"]["configuration"]), folds[0]
    resolved = any_configuration(plans, name)
    refuse_untrusted_names(plans, resolved, folder / "plans.json")
    axes = first.get("inference_allowed_mirroring_axes")
    description = Description(
        plans=plans,
        dataset_json=dataset_json,
        configuration=name,
        fold=fold if fold == "all" else int(fold),
        trainer_name=first["trainer_name"],
        mirroring_axes=None if axes is None else [int(axis) for axis in axes],
        nnssl_version=VERSION,
    )
    return Opened(description, trusted_network(resolved, folder / "plans.json"), weights)


def load_folds(predictor: Any, folder: Path, folds: Sequence[str], checkpoint: str) -> None:
    """Initialise an `nnUNetPredictor` from a model folder.

    Its own `initialize_from_trained_model_folder` lets checkpoints run code and builds whatever plans name.

    Raises:
        UserError: as `open_folds`; or nnU-Net does not find the trainer, or the weights do not fit the network.
    """
    opened = open_folds(folder, folds, checkpoint)
    with quietly():
        network, plans, configuration, _ = _network(opened, folder)
        about, axes = opened.description, opened.description.mirroring_axes
        predictor.manual_initialization(network, plans, configuration, opened.weights, about.dataset_json,
                                        about.trainer_name, None if axes is None else tuple(axes))  # fmt: skip


def _network(opened: Opened, folder: Path) -> tuple[Any, Any, Any, int]:
    """The network with the weights of the first fold, nnU-Net's managers of plans and configuration, input channels."""
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

    about = opened.description
    try:
        plans, configuration = PlansManager(about.plans), ConfigurationManager(opened.configuration)
        channels = determine_num_input_channels(plans, configuration, about.dataset_json)
        heads = plans.get_label_manager(about.dataset_json).num_segmentation_heads
        network = _build(_trainer(about.trainer_name), plans, configuration, channels, heads)
        network.load_state_dict(opened.weights[0])
    except RuntimeError as error:  # how nnU-Net says that there is no such trainer, and torch that nothing fits
        raise UserError(f"nnU-Net cannot load {folder} ({' '.join(str(error).split())[:300]}); nnssl_doctor says "
                        f"whether it finds its trainers") from error  # fmt: skip
    return network, plans, configuration, channels


def _read_folds(files: Sequence[Path]) -> tuple[dict[str, Any], list[Any]]:
    """Content of the first checkpoint without its optimiser, and the weights of all."""
    first: dict[str, Any] = {}
    weights = []
    for file in files:
        content = read_nnunet_checkpoint(file)
        has = {*content, *(content.get("init_args") or ())}
        if absent := [key for key in ("network_weights", "trainer_name", "configuration") if key not in has]:
            raise UserError(f"{file} has no {absent[0]}, so it is no checkpoint of nnUNetv2_train; name one with -chk")
        weights.append(content["network_weights"])
        first = first or {key: value for key, value in content.items() if key != "optimizer_state"}
    return first, weights


def _trainer(name: str) -> Any:
    """The trainer that a checkpoint names, as nnU-Net finds it."""
    try:
        return find_trainer(name)
    except (AssertionError, TypeError) as error:  # a class of that name that is no trainer
        raise RuntimeError(f"{name!r} is no trainer") from error


def _build(trainer: Any, plans: Any, configuration: Any, channels: int, heads: int) -> Any:
    """The network without deep supervision; trainers from before nnU-Net 2.8 take the parts of the architecture."""
    if "plans_manager" in inspect.signature(trainer.build_network_architecture).parameters:
        described: tuple[Any, ...] = (plans, configuration)
    else:
        described = (
            configuration.network_arch_class_name,
            configuration.network_arch_init_kwargs,
            configuration.network_arch_init_kwargs_req_import,
        )
    return trainer.build_network_architecture(*described, channels, heads, enable_deep_supervision=False)


def read_model(folder: Path, fold: str, checkpoint: str) -> TrainedModel:
    """Load one fold of any model folder that `nnUNetv2_predict` can use.

    Args:
        folder: of a training, TRAINER__PLANS__CONFIGURATION.
        fold: a number, or "all".
        checkpoint: file name of the checkpoint.

    Raises:
        UserError: something is missing, or nnU-Net cannot build the network or load it.
    """
    opened = open_folds(folder, [fold], checkpoint)
    with quietly():
        network, _, configuration, channels = _network(opened, folder)
    shape = (channels, *map(int, configuration.patch_size))
    return TrainedModel(network.eval(), opened.description, shape)
