"""What preprocessed volumes were made with, so that plans and volumes of different make are never mixed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from nnssl.core.json_files import read_json, write_json
from nnssl.core.own_files import SettingsFile
from nnssl.data.reader import REORIENTING
from nnssl.data.records import digest_of
from nnssl.data.storage import body_folder
from nnssl.errors import UserError

_FILE = "settings.json"  # beside the body masks: nnU-Net's own folder holds nnU-Net's files only
_KEYS = (
    "preprocessor_name", "spacing", "normalization_schemes", "use_mask_for_norm", "resampling_fn_data",
    "resampling_fn_data_kwargs", "resampling_fn_seg", "resampling_fn_seg_kwargs",
)  # fmt: skip
_CT_KEYS = ("mean", "std", "percentile_00_5", "percentile_99_5")


def resolved_configuration(plans: dict[str, Any], configuration: str) -> Any:
    """nnU-Net's `ConfigurationManager`, with what a configuration inherits from others."""
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    return PlansManager(plans).get_configuration(configuration)


def volume_settings(plans: dict[str, Any], configuration: str) -> dict[str, Any]:
    """The part of plans that decides the values and the grid of a volume, as JSON types.

    Raises:
        UserError: the plans lack some of it.
    """
    resolved = resolved_configuration(plans, configuration).configuration
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


def settings_in_folder(plans: dict[str, Any] | None, configuration: str, folder: str) -> dict[str, Any] | None:
    """`volume_settings` of plans whose volumes are in `folder` (its name); None where theirs are elsewhere."""
    if plans is None or configuration not in plans["configurations"]:
        return None
    same = resolved_configuration(plans, configuration).data_identifier == folder
    return volume_settings(plans, configuration) if same else None


def settings_digest(plans: dict[str, Any], configuration: str) -> str:
    """Digest of `volume_settings`, as records hold it."""
    return digest_of(volume_settings(plans, configuration))


def read_settings(folder: Path) -> dict[str, Any] | None:
    """What the volumes of `folder` are made with, as noted there; None where nothing is noted."""
    file = body_folder(folder) / _FILE
    if not file.is_file():
        return None
    return dict(read_json(file, SettingsFile, "delete it if these plans made the volumes"))


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Note what the volumes of `folder` are made with from now on; their records tell which ones are not yet."""
    write_json(body_folder(folder) / _FILE, settings)


def refuse_other_settings(folder: Path, settings: dict[str, Any], advice: str) -> None:
    """Raise UserError where the volumes of `folder` are made with other settings; `advice` ends the sentence."""
    made_with = read_settings(folder)
    if made_with is not None and made_with != settings:
        changed = ", ".join(key for key in {**settings, **made_with} if made_with.get(key) != settings.get(key))
        raise UserError(f"the volumes in {folder} were made with other plans ({changed} changed); {advice}")
