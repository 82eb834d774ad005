"""What the volumes of a dataset are made with, and the report on them: left out, oriented differently, doubtful."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nnssl.core.errors import UserError
from nnssl.core.files import read_json, write_json
from nnssl.core.own_files import ReportFile, SettingsFile
from nnssl.data.guard import STOCK_WAY_OUT, named
from nnssl.data.raw_files import digest_of
from nnssl.data.reader import REORIENTING
from nnssl.data.storage import body_folder


@dataclass(frozen=True)
class PreparedDataset:
    """What `plan_and_preprocess` leaves of one dataset.

    Args:
        name: such as Dataset500_Thorax.
        plans_name: the plans are `folder.parent / f"{plans_name}.json"`.
        configuration: of the plans.
        folder: nnU-Net's folder of the volumes.
        body_folder: of the body masks.
        cases: volumes that are ready (of this part), sorted; none where only plans were asked for.
        left_out: reason by case.
    """

    name: str
    plans_name: str
    configuration: str
    folder: Path
    body_folder: Path
    cases: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


@dataclass
class Findings:
    """What is known of the cases of a dataset, by their names.

    Args:
        left_out: why cases are not used.
        orientations: letters such as LPS; None where the format does not know them.
        warnings: what does not rule a case out and should be looked at.
    """

    left_out: dict[str, str] = field(default_factory=dict)
    orientations: dict[str, str | None] = field(default_factory=dict)
    warnings: dict[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class RunOptions:
    """Folders and options of a call, see `plan_and_preprocess`."""

    raw: Path
    preprocessed: Path
    configuration: str
    num_processes: int
    num_parts: int
    part_id: int
    clean: bool
    strict: bool
    show_progress: bool
    overwrite_volumes: bool = False


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
    if plans.get("image_reader_writer") == REORIENTING:  # all other readers give the same values
        settings["reader"] = REORIENTING
    settings["ct_window"] = [
        {key: plans["foreground_intensity_properties_per_channel"][str(c)][key] for key in _CT_KEYS}
        for c, scheme in enumerate(resolved["normalization_schemes"])
        if scheme == "CTNormalization"
    ]
    return dict(json.loads(json.dumps(settings)))


def settings_in_folder(plans: dict[str, Any] | None, configuration: str, folder: str) -> dict[str, Any] | None:
    """`volume_settings` of plans whose volumes are in the folder of this name; None if they are elsewhere."""
    if plans is None or configuration not in plans["configurations"]:
        return None
    same = resolved_configuration(plans, configuration).data_identifier == folder
    return volume_settings(plans, configuration) if same else None


def settings_digest(plans: dict[str, Any], configuration: str) -> str:
    """Digest of `volume_settings`, as records hold it."""
    return digest_of(volume_settings(plans, configuration))


def read_settings(folder: Path) -> dict[str, Any] | None:
    """Settings that are noted for the volumes of `folder`; None without a note."""
    file = body_folder(folder) / _FILE
    if not file.is_file():
        return None
    return dict(read_json(file, SettingsFile, "delete it if these plans made the volumes"))


def write_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Note the settings for the volumes of `folder` from now on; records tell which volumes have older ones."""
    write_json(body_folder(folder) / _FILE, settings)


def refuse_other_settings(folder: Path, settings: dict[str, Any], advice: str) -> None:
    """Raise UserError where the volumes of `folder` are made with other settings; `advice` ends the sentence."""
    made_with = read_settings(folder)
    if made_with is not None and made_with != settings:
        changed = ", ".join(key for key in {**settings, **made_with} if made_with.get(key) != settings.get(key))
        raise UserError(f"the volumes in {folder} were made with other plans ({changed} changed); {advice}")


NEW_REPORT = "delete it: nnssl_plan_and_preprocess writes it anew"
_NAMED = 10  # volumes and files that the log names

logger = logging.getLogger("nnssl")


def report_file(preprocessed: Path, plans_name: str, num_parts: int = 1, part_id: int = 0) -> Path:
    """`<plans>_left_out.json` of a dataset, or that of one part."""
    part = f"_part_{part_id}_of_{num_parts}" if num_parts > 1 else ""
    return preprocessed / f"{plans_name}_left_out{part}.json"


def orientation_summary(orientations: Mapping[str, str | None]) -> dict[str, Any]:
    """Counts by orientation, the commonest one and the cases that differ from it.

    Args:
        orientations: letters such as LPS by case; None (the format does not know) is not counted.
    """
    known = {case: letters for case, letters in orientations.items() if letters is not None}
    counts = Counter(dict(sorted(Counter(known.values()).items())))
    majority = counts.most_common(1)[0][0] if counts else None
    differ = {case: letters for case, letters in sorted(known.items()) if letters != majority}
    return {"counts": dict(counts.most_common()), "majority": majority, "different": differ}


def read_report(file: Path) -> dict[str, Any]:
    """Content of a report of an earlier run; an empty one where there is none."""
    if not file.is_file():
        return {"left_out": {}, "orientation": orientation_summary({}), "warnings": {}}
    return {"warnings": {}, **read_json(file, ReportFile, NEW_REPORT)}


def majority_orientation(home: Path, plans_name: str) -> str | None:
    """Commonest orientation of a preprocessed dataset's volumes, such as LPS, from its report; None where unknown."""
    majority: str | None = read_report(report_file(home, plans_name))["orientation"]["majority"]
    return majority


def recalled_orientations(home: Path, first: Sequence[Path], cases: Iterable[str]) -> dict[str, str]:
    """Orientations that earlier reports know: those of the reports `first`, then of all others in `home`."""
    found: dict[str, str] = {}
    missing = set(cases)
    for file in (*first, *sorted(home.glob("*_left_out*.json"))) if missing else ():
        summary = read_report(file)["orientation"]
        known = {case: summary["different"].get(case, summary["majority"]) for case in missing - found.keys()}
        found |= {case: letters for case, letters in known.items() if letters}
    return found


def write_report(file: Path, found: Findings, ignored: Mapping[str, str] | None = None, may_write: bool = True) -> None:
    """Write the JSON where it says something new; log what was left out, other orientations, grids and files.

    Args:
        file: see `report_file`.
        found: of the cases that the report is about.
        ignored: why files belong to no case, by file.
        may_write: False for a folder that is only read.
    """
    summary = orientation_summary(found.orientations)
    doubts = {case: list(said) for case, said in sorted(found.warnings.items()) if said}
    unused = dict(sorted((ignored or {}).items()))
    content = {"left_out": dict(sorted(found.left_out.items())), "orientation": summary, "warnings": doubts,
               "ignored": unused}  # fmt: skip
    if may_write and not (file.is_file() and _holds(file, content)):
        write_json(file, content)
    _warn(doubts, unused)
    differ = summary["different"]
    if differ:
        total = sum(summary["counts"].values())
        logger.warning("volumes are not oriented %s as the others: %s. nnU-Net does not reorient, and methods that "
                       "learn positions suffer; %s", summary["majority"], named(differ, total),
                       STOCK_WAY_OUT)  # fmt: skip
    for case, reason in content["left_out"].items():
        logger.warning("left out: %s: %s", case, reason)


def refuse_left_out(dataset: str, found: Findings) -> None:
    """Raise UserError, for `--strict`, that names every volume that is left out or doubtful."""
    doubts = {case: "; ".join(said) for case, said in found.warnings.items() if said}
    if refused := sorted({**doubts, **found.left_out}.items()):
        reasons = "; ".join(f"{case}: {reason}" for case, reason in refused)
        raise UserError(f"{dataset}: --strict refuses volumes that cannot be used ({reasons}); mend or remove them, or "
                        f"run without --strict")  # fmt: skip


def _warn(warnings: Mapping[str, Sequence[str]], ignored: Mapping[str, str]) -> None:
    for case, found in list(warnings.items())[:_NAMED]:
        logger.warning("%s: %s", case, "; ".join(found))
    if len(warnings) > _NAMED:
        logger.warning("... and %d more volumes with such a warning, all in the report", len(warnings) - _NAMED)
    if ignored:
        named = ", ".join(f"{file} ({why})" for file, why in list(ignored.items())[:_NAMED])
        count = f"{len(ignored)} files belong" if len(ignored) > 1 else "1 file belongs"
        logger.warning("%s to no case: %s%s", count, named, ", ..." if len(ignored) > _NAMED else "")


def nothing_usable(name: str, left_out: Mapping[str, str]) -> str:
    """The sentence for a dataset without a usable volume."""
    reasons = "; ".join(f"{case}: {reason}" for case, reason in sorted(left_out.items())[:5])
    return f"{name}: no volume can be used; mend the files ({reasons})"


def _holds(file: Path, content: Mapping[str, Any]) -> bool:
    try:
        return bool(read_json(file) == content)
    except UserError:  # a damaged one is written anew
        return False
