"""Trained networks of nnU-Net's model folders, loaded as `nnUNetv2_predict` loads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnssl import __version__
from nnssl.core.json_files import read_json
from nnssl.core.names import check_name
from nnssl.core.plans_schema import PlansFile
from nnssl.core.schemas import DatasetFile
from nnssl.data.quiet import quietly
from nnssl.deployment.description import Description
from nnssl.errors import UserError


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
    """Raise UserError where `folder` is no model folder, or has not these folds with this checkpoint."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; -m wants the folder of a training, which is named "
                        f"TRAINER__PLANS__CONFIGURATION")  # fmt: skip
    for name in ("plans.json", "dataset.json"):
        if not (folder / name).is_file():
            raise UserError(f"{folder} has no {name}; -m wants the folder that holds it beside the fold_... folders "
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


def load_folds(predictor: Any, folder: Path, folds: Sequence[str], checkpoint: str) -> None:
    """Initialise an `nnUNetPredictor` from a model folder that `check_model_folder` has seen.

    Raises:
        UserError: nnU-Net does not find the trainer, or the weights do not fit the network of the plans.
    """
    with quietly():
        try:
            predictor.initialize_from_trained_model_folder(str(folder), tuple(folds), checkpoint)
        except RuntimeError as error:  # how nnU-Net says that there is no such trainer, and torch that nothing fits
            raise UserError(f"nnU-Net cannot load {folder} ({' '.join(str(error).split())[:300]}); nnssl_doctor says "
                            f"whether it finds its trainers") from error  # fmt: skip


def read_model(folder: Path, fold: str, checkpoint: str) -> TrainedModel:
    """Load one fold of a model folder; any will do that `nnUNetv2_predict` can use.

    Args:
        folder: of a training, TRAINER__PLANS__CONFIGURATION.
        fold: a number, or "all".
        checkpoint: file name of the checkpoint.

    Raises:
        UserError: something is missing, or nnU-Net cannot build the network or load it.
    """
    import torch

    check_model_folder(folder, [fold], checkpoint)
    with quietly():
        from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
        from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels

        predictor = nnUNetPredictor(device=torch.device("cpu"))
    load_folds(predictor, folder, [fold], checkpoint)
    configuration, plans, axes = (
        predictor.configuration_manager,
        predictor.plans_manager,
        predictor.allowed_mirroring_axes,
    )
    channels = determine_num_input_channels(plans, configuration, predictor.dataset_json)
    description = Description(
        plans=plans.plans,
        dataset_json=predictor.dataset_json,
        configuration=_configuration_name(folder / f"fold_{fold}" / checkpoint),
        fold=fold if fold == "all" else int(fold),
        trainer_name=predictor.trainer_name,
        mirroring_axes=None if axes is None else [int(axis) for axis in axes],
        nnssl_version=__version__,
    )
    network = getattr(predictor.network, "_orig_mod", predictor.network)  # nnUNet_compile wraps it
    return TrainedModel(network.eval(), description, (channels, *map(int, configuration.patch_size)))


def _configuration_name(checkpoint: Path) -> str:
    """The one thing that nnU-Net's predictor reads and does not keep."""
    import torch

    # as nnU-Net loads it; with mmap the tensors stay on the disk
    name: str = torch.load(checkpoint, map_location="cpu", weights_only=False, mmap=True)["init_args"]["configuration"]
    return name
