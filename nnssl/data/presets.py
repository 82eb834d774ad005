"""Presets: complete nnU-Net plans whose `null` entries are filled from the dataset as a stock planner would."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnssl.core.errors import UserError

if TYPE_CHECKING:  # tab completion only needs the names
    from nnssl.data.raw import RawDataset

_ROOM = Path(__file__).resolve().parent.parent
# Inside the package in a wheel, beside it in the repository.
_FOLDERS = (_ROOM / "plans", _ROOM.parent / "plans")


def presets() -> dict[str, Path]:
    """Files of the presets by name, such as nnsslPlans_vox2vec."""
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), None)
    return {} if folder is None else {file.stem: file for file in sorted(folder.glob("nnsslPlans_*.json"))}


def plans_from_preset(name: str, dataset: RawDataset, planner: Any) -> dict[str, Any]:
    """Plans for `dataset` from the preset `name`.

    Args:
        name: of the preset.
        dataset: the raw dataset.
        planner: a stock planner of the dataset, whose methods fill what the preset leaves open.

    Raises:
        UserError: the preset is for one CT channel, and the dataset has others.
    """
    import numpy as np

    plans = json.loads(presets()[name].read_text())
    _check_channels(name, plans, dataset)
    fingerprint = planner.dataset_fingerprint
    if plans["transpose_forward"] is None:
        plans["transpose_forward"], plans["transpose_backward"] = (_ints(t) for t in planner.determine_transpose())
    axes = plans["transpose_forward"]
    if plans["foreground_intensity_properties_per_channel"] is None:
        properties = fingerprint["foreground_intensity_properties_per_channel"]
        plans["foreground_intensity_properties_per_channel"] = deepcopy(properties)
    plans["dataset_name"] = dataset.name
    plans["image_reader_writer"] = planner.determine_reader_writer().__name__
    plans["original_median_spacing_after_transp"] = _floats(np.median(fingerprint["spacings"], 0)[axes])
    plans["original_median_shape_after_transp"] = _ints(np.median(fingerprint["shapes_after_crop"], 0)[axes].round())
    for configuration in plans["configurations"].values():
        _fill_configuration(configuration, planner, axes)
    return plans


def _fill_configuration(configuration: dict[str, Any], planner: Any, axes: list[int]) -> None:
    import numpy as np
    from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape

    fingerprint = planner.dataset_fingerprint
    if configuration["spacing"] is None:
        configuration["spacing"] = _floats(planner.determine_fullres_target_spacing()[axes])
    if configuration["normalization_schemes"] is None:
        schemes, masked = planner.determine_normalization_scheme_and_whether_mask_is_used_for_norm()
        configuration["normalization_schemes"], configuration["use_mask_for_norm"] = schemes, masked
    if configuration["median_image_size_in_voxels"] is None:
        shapes = [
            compute_new_shape(np.asarray(shape)[axes], np.asarray(spacing)[axes], configuration["spacing"])
            for shape, spacing in zip(fingerprint["shapes_after_crop"], fingerprint["spacings"], strict=True)
        ]
        configuration["median_image_size_in_voxels"] = _floats(np.median(shapes, 0))


def _check_channels(name: str, plans: dict[str, Any], dataset: RawDataset) -> None:
    fixed = plans["foreground_intensity_properties_per_channel"]
    if fixed is not None and (len(dataset.channel_names) != len(fixed) or dataset.ct_channel != 0):
        raise UserError(f"{name} is made for one CT channel, but the channels of {dataset.name} are "
                        f"{', '.join(dataset.channel_names)}; take another preset or a planner, such as "
                        f"-p nnsslPlans_tiny or -pl nnUNetPlannerResEncL")  # fmt: skip


def _ints(values: Any) -> list[int]:
    return [int(v) for v in values]


def _floats(values: Any) -> list[float]:
    return [float(v) for v in values]
