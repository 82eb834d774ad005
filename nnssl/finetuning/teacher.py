"""The teacher of a distillation: which trained model, whether it fits, and its outputs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nnssl.checkpoints.files import FINAL
from nnssl.core.errors import UserError
from nnssl.deployment.model_folder import read_model
from nnssl.deployment.session import Description
from nnssl.networks.build import resolve_configuration
from nnssl.networks.pyramid import Stride, padded_to_multiple

VARIABLE = "nnssl_teacher"
ENTRY = "teacher"  # of plans["nnssl"]
_CT_KEYS = ("mean", "std", "percentile_00_5", "percentile_99_5")


@dataclass(frozen=True)
class TeacherPlace:
    """Where a trained model is.

    Args:
        named: what the plans, the variable or the search gave: a model folder, or one fold of it.
        checkpoint: the file, `MODEL/fold_X/...pth`.
    """

    named: Path
    checkpoint: Path

    @property
    def folder(self) -> Path:
        """The model folder."""
        return self.checkpoint.parent.parent

    @property
    def fold(self) -> str:
        """A number, or "all"."""
        return self.checkpoint.parent.name.removeprefix("fold_")


def find_teacher(
    block: Mapping[str, Any], results: Path, model_folder: Path, fold: int | str, trainer: str | None
) -> TeacherPlace:
    """Teacher of a distillation: that of the plans, else that of the environment, else the only one there is.

    Args:
        block: `plans["nnssl"]`.
        results: nnUNet_results, which relative paths in the plans start from.
        model_folder: of the student, `RESULTS/DATASET/TRAINER__PLANS__CONFIGURATION`.
        fold: of the student. The teacher is of the same fold, or of fold "all", unless one is named.
        trainer: of the teacher to look for in the student's dataset and configuration where none is named;
            None for any that is no distillation. One with the student's plans is preferred.

    Raises:
        UserError: plans and environment disagree; nothing is there; none or several are finished.
    """
    planned = _full(block.get(ENTRY), results)
    asked = _full(os.environ.get(VARIABLE), Path.cwd())
    if planned and asked and planned != asked:
        raise UserError(f"the plans name the teacher {planned} and {VARIABLE} names {asked}; unset it, or mend the "
                        f"plans (nnssl: {ENTRY})")  # fmt: skip
    if named := planned or asked:
        return _place(named, fold, "the plans name" if planned else f"{VARIABLE} names")
    _, plans, configuration = model_folder.name.split("__")
    found = {
        folder: checkpoint
        for folder in sorted(model_folder.parent.glob(f"{trainer or '*'}__*__{configuration}"))
        if (trainer or _could_teach(folder, model_folder)) and (checkpoint := _finished(folder, fold))
    }
    same_plans = {folder: file for folder, file in found.items() if folder.name.split("__")[1] == plans}
    chosen = same_plans if len(same_plans) == 1 else found
    if len(chosen) == 1:
        return TeacherPlace(*chosen.popitem())
    raise UserError(_none_or_several(list(found), model_folder.parent.name, configuration, fold, trainer))


def refuse_other_teacher(
    teacher: Description, plans: dict[str, Any], configuration: str, dataset_json: Mapping[str, Any]
) -> None:
    """Make sure that a teacher can say something of the student's patches, channel by channel.

    Args:
        teacher: its plans and dataset.
        plans: of the student.
        configuration: of the student.
        dataset_json: of the student.

    Raises:
        UserError: labels, channels, spacing, order of axes or intensities differ, all of them named; or it is 2D or
            the second stage of a cascade.
    """
    given = resolve_configuration(teacher.plans, teacher.configuration)
    own = resolve_configuration(plans, configuration)
    if given.get("previous_stage") is not None:
        raise UserError(f"the teacher's {teacher.configuration} also reads the segmentation of "
                        f"{given['previous_stage']}; take a teacher of one stage")  # fmt: skip
    what = {
        "labels": (_labels(teacher.dataset_json), _labels(dataset_json)),
        "channels": (_channels(teacher.dataset_json), _channels(dataset_json)),
        "spacing in mm": (_rounded(given["spacing"]), _rounded(own["spacing"])),
        "order of the axes": (teacher.plans["transpose_forward"], plans["transpose_forward"]),
        "normalisation": (_normalisation(given), _normalisation(own)),
        "CT window": (_windows(teacher.plans, given), _windows(plans, own)),
    }
    different = [
        f"{name}: {theirs} of the teacher, {mine} here" for name, (theirs, mine) in what.items() if theirs != mine
    ]
    if different:
        raise UserError(f"the teacher does not fit this training ({'; '.join(different)}); distil with the teacher's "
                        f"plans (-p {teacher.plans['plans_name']}) and labels, or name another teacher with export "
                        f"{VARIABLE}=/path/to/model/folder")  # fmt: skip


class Teacher:
    """A trained network in evaluation mode, without gradients.

    Args:
        place: from `find_teacher`.

    Attributes:
        description: its plans, dataset and mirroring.

    Raises:
        UserError: something is missing, or nnU-Net cannot build the network or load it.
    """

    def __init__(self, place: TeacherPlace) -> None:
        model = read_model(place.folder, place.fold, place.checkpoint.name)
        self.description = model.description
        self.network: Any = model.network.requires_grad_(False)
        self._divisor = _total_stride(model.description)

    def to(self, device: torch.device) -> Teacher:
        """Move the network; returns itself."""
        self.network.to(device)
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (B, C, Z, Y, X) of images (B, C_in, Z, Y, X) of any size, which are padded for the network."""
        z, y, x_ = x.shape[2:]
        with torch.no_grad():
            logits: Tensor = self.network(padded_to_multiple(x, self._divisor))
        return logits[:, :, :z, :y, :x_]


def _full(value: str | None, base: Path) -> Path | None:
    return (base / value).resolve() if value else None


def _place(named: Path, fold: int | str, who: str) -> TeacherPlace:
    """A model folder, a fold's folder or a checkpoint as a place."""
    if named.is_file():
        return TeacherPlace(named, named)
    if named.name.startswith("fold_") and (named / FINAL).is_file():
        return TeacherPlace(named, named / FINAL)
    if checkpoint := _finished(named, fold):
        return TeacherPlace(named, checkpoint)
    raise UserError(f"{who} the teacher {named}, which has no fold_{fold}/{FINAL}; finish that training, or name a "
                    f"fold that is finished with export {VARIABLE}={named}/fold_X")  # fmt: skip


def _could_teach(folder: Path, student: Path) -> bool:
    """Whether a folder in the student's dataset is that of a training, and of no distillation."""
    trainer = folder.name.split("__")[0]
    return folder != student and "Distill" not in trainer and not trainer.startswith("nnssl_")  # pretrainings


def _finished(folder: Path, fold: int | str) -> Path | None:
    files = [folder / f"fold_{name}" / FINAL for name in (fold, "all")]
    return next((file for file in files if file.is_file()), None)


def _none_or_several(found: list[Path], dataset: str, configuration: str, fold: int | str, trainer: str | None) -> str:
    if found:
        listed = "".join(f"\n  export {VARIABLE}={folder}" for folder in found)
        return f"there are {len(found)} models that could be the teacher; name one, by typing one of:{listed}"
    first = f"nnUNetv2_train {dataset} {configuration} {fold} -tr {trainer or 'nnUNetTrainer_PartialLabels'}"
    return (f"there is no finished {trainer or 'model'} of {dataset}, {configuration}, fold {fold} to learn from; "
            f"train one first ({first}), or name a model with export {VARIABLE}=/path/to/model/folder")  # fmt: skip


def _labels(dataset_json: Mapping[str, Any]) -> Any:
    order = dataset_json.get("regions_class_order")
    return {**dataset_json["labels"], **({"regions_class_order": order} if order else {})}


def _channels(dataset_json: Mapping[str, Any]) -> list[str]:
    return list((dataset_json.get("channel_names") or dataset_json["modality"]).values())


def _rounded(spacing: Any) -> list[float]:
    """To four digits, so that a difference is one that matters."""
    return [float(f"{s:.4g}") for s in spacing]


def _normalisation(resolved: Mapping[str, Any]) -> list[Any]:
    return [list(pair) for pair in zip(resolved["normalization_schemes"], resolved["use_mask_for_norm"], strict=True)]


def _windows(plans: Mapping[str, Any], resolved: Mapping[str, Any]) -> list[list[float]]:
    """What CT normalisation subtracts, divides by and clips to, of each CT channel."""
    properties = plans["foreground_intensity_properties_per_channel"]
    return [[properties[str(c)][key] for key in _CT_KEYS]
            for c, scheme in enumerate(resolved["normalization_schemes"]) if scheme == "CTNormalization"]  # fmt: skip


def _total_stride(teacher: Description) -> Stride:
    resolved = resolve_configuration(teacher.plans, teacher.configuration)
    of_network = resolved.get("architecture", {}).get("arch_kwargs", {}).get("strides")
    z, y, x = np.prod(of_network or resolved.get("pool_op_kernel_sizes") or [[1, 1, 1]], axis=0)
    return int(z), int(y), int(x)
