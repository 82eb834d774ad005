"""What preprocessed volumes were made with, so that plans and volumes of different make are never mixed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from nnssl.core.json_files import read_json, write_json
from nnssl.core.own_files import SettingsFile
from nnssl.data.reader import REORIENTING
from nnssl.data.storage import body_folder, done_cases
from nnssl.errors import UserError

_FILE = "settings.json"  # beside the body masks: nnU-Net's own folder holds nnU-Net's files only
_KEYS = (
    "preprocessor_name", "spacing", "normalization_schemes", "use_mask_for_norm", "resampling_fn_data",
    "resampling_fn_data_kwargs", "resampling_fn_seg", "resampling_fn_seg_kwargs",
)  # fmt: skip
_CT_KEYS = ("mean", "std", "percentile_00_5", "percentile_99_5")


def volume_settings(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """The part of plans that decides the values and the grid of a volume, as JSON types.

    Raises:
        UserError: the plans lack some of it.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    resolved = PlansManager(plans).get_configuration(configuration).configuration
    if missing := [key for key in _KEYS if key not in resolved]:
        raise UserError(f"{configuration} of the plans {plans['plans_name']} lacks {', '.join(missing)}, which "
                        f"preprocessing needs; restore the plans, or choose others with -p")  # fmt: skip
    settings = {key: resolved[key] for key in _KEYS}
    settings["transpose_forward"] = plans["transpose_forward"]
    if plans.get("image_reader_writer") == REORIENTING:  # other readers give the same values; nothing is noted of them
        settings["reader"] = REORIENTING
    settings["ct_window"] = [
        {key: plans["foreground_intensity_properties_per_channel"][str(c)][key] for key in _CT_KEYS}
        for c, scheme in enumerate(resolved["normalization_schemes"])
        if scheme == "CTNormalization"
    ]
    return dict(json.loads(json.dumps(settings)))


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Compare with what the volumes of `folder` were made with; note it where nothing is known.

    Raises:
        UserError: they were made with other settings.
    """
    made_with = _made_with(folder)
    if made_with is None:
        write_json(body_folder(folder) / _FILE, settings)
    elif made_with != settings:
        changed = ", ".join(key for key in {**settings, **made_with} if made_with.get(key) != settings.get(key))
        raise UserError(f"the volumes in {folder} were made with other plans ({changed} changed); give the plans a "
                        f"name of their own with -overwrite_plans_name, or delete that folder and "
                        f"{body_folder(folder).name} to make them anew")  # fmt: skip


def remove_unfit_volumes(folder: Path, settings: dict[str, Any], before: dict[str, Any] | None) -> bool:
    """Remove the volumes of `folder` unless they were made with `settings`; whether any were removed.

    Args:
        folder: of the volumes.
        settings: of the plans that replace others.
        before: settings of the plans that are replaced, which speak for volumes of nnU-Net's own making.
    """
    made_with = _made_with(folder) or before
    if made_with == settings or made_with is None:
        return False
    any_volumes = bool(done_cases(folder))
    for old in (folder, body_folder(folder)):
        if old.is_symlink():
            raise UserError(f"{old} is a link, and its volumes do not fit the new plans; remove the link, or give the "
                            f"plans another name with -overwrite_plans_name")  # fmt: skip
        shutil.rmtree(old, ignore_errors=True)
    return any_volumes


def _made_with(folder: Path) -> dict[str, Any] | None:
    file = body_folder(folder) / _FILE
    if not file.is_file():
        return None
    settings: dict[str, Any] = read_json(file, SettingsFile, f"delete {folder} and {body_folder(folder).name} to make "
                                         f"the volumes anew")  # fmt: skip
    return settings
